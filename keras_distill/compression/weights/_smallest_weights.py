"""Choosing the smallest weights, in each layer or in the whole model.

This runs in NumPy between two steps. `np.partition` finds the threshold without
sorting.
"""

from collections.abc import Sequence

import numpy as np

SCOPES = ("layer", "global", "lamp")


def smallest(
    weights: Sequence[np.ndarray], sparsity: float, scope: str
) -> list[np.ndarray]:
    """Return a bool array for each weight: which of its values are smallest.

    Args:
        weights: list of arrays.
        sparsity: float in [0, 1), the share of values to choose.
        scope: one of `SCOPES`, as in `MagnitudePruning`.
    """
    magnitudes = [np.abs(w, dtype="float32").ravel() for w in weights]
    if scope == "layer":
        zeros = [round(sparsity * m.size) for m in magnitudes]
    else:
        total = round(sparsity * sum(m.size for m in magnitudes))
        zeros = _zeros_per_layer(magnitudes, total, scope)
    return [
        _smallest_of(m, number).reshape(w.shape)
        for m, number, w in zip(magnitudes, zeros, weights)
    ]


def share_of_zeros(weights: Sequence[np.ndarray]) -> float:
    """Return the share of zeros in all arrays together."""
    size = sum(array.size for array in weights)
    zeros = sum(array.size - np.count_nonzero(array) for array in weights)
    return zeros / max(size, 1)


def _zeros_per_layer(magnitudes, total, scope):
    """Return how many of the smallest scores of the model each layer has."""
    scores = [_lamp(m) if scope == "lamp" else m for m in magnitudes]
    pruned = _smallest_of(np.concatenate(scores), total)
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [np.count_nonzero(part) for part in np.split(pruned, ends)]


def _smallest_of(scores, number):
    """Return a bool array: the given number of smallest scores in a vector."""
    # Zeros are counted first: among many equal values, `np.partition` takes
    # thirty times longer.
    left = scores[scores != 0]
    more = number - (scores.size - left.size)
    threshold = np.partition(left, more - 1)[more - 1] if more > 0 else 0.0
    chosen = scores <= threshold
    too_many = np.count_nonzero(chosen) - number
    if too_many > 0:  # Several scores are equal to the threshold.
        chosen[np.flatnonzero(scores == threshold)[:too_many]] = False
    return chosen


def _lamp(magnitudes):
    """Return the LAMP scores of a layer, in ascending order.

    Only their number per layer is used. Within a layer, scores and magnitudes
    have the same order.
    """
    squares = np.sort(magnitudes).astype("float64") ** 2
    # For each weight, the sum of its square and those of all larger weights.
    sums = np.cumsum(squares[::-1])[::-1]
    scores = squares / np.maximum(sums, np.finfo("float64").tiny)
    return scores.astype("float32")
