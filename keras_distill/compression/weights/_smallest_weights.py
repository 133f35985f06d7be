"""Which weights are the least, by layer or among all of a model.

In NumPy: a choice is made between two steps, and `np.partition` finds a limit
without a sort.
"""

import numpy as np

SCOPES = ("layer", "global", "lamp")


def least(weights, sparsity, scope):
    """Return for each array which of its values are among the least.

    Args:
        weights: list of arrays.
        sparsity: float in [0, 1), the share that the least are of all.
        scope: one of `SCOPES`, as `MagnitudePruning` says.

    Returns:
        List of bool arrays.
    """
    magnitudes = [np.abs(w, dtype="float32").ravel() for w in weights]
    if scope == "layer":
        zeros = [round(sparsity * m.size) for m in magnitudes]
    else:
        total = round(sparsity * sum(m.size for m in magnitudes))
        zeros = _zeros_per_layer(magnitudes, total, scope)
    return [
        _least_of(m, number).reshape(w.shape)
        for m, number, w in zip(magnitudes, zeros, weights)
    ]


def _zeros_per_layer(magnitudes, total, scope):
    """Return how many zeros each layer has if the least scores go anywhere."""
    scores = [_lamp(m) if scope == "lamp" else m for m in magnitudes]
    pruned = _least_of(np.concatenate(scores), total)
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [np.count_nonzero(part) for part in np.split(pruned, ends)]


def _least_of(scores, number):
    """Return which of the scores, a vector, are the least, so many of them."""
    # Those that are zero by now are set apart: among so many that are equal, a
    # search for the next ones would take thirty times longer.
    left = scores[scores != 0]
    more = number - (scores.size - left.size)
    limit = np.partition(left, more - 1)[more - 1] if more > 0 else 0.0
    least = scores <= limit
    too_many = np.count_nonzero(least) - number
    if too_many > 0:  # Several are equal to the limit.
        least[np.flatnonzero(scores == limit)[:too_many]] = False
    return least


def _lamp(magnitudes):
    """Return the scores of a layer in ascending order.

    They ascend with the magnitudes, whose order need not be kept, then.
    """
    squares = np.sort(magnitudes).astype("float64") ** 2
    # In ascending order, the weights that are at least as large come after.
    sums = np.cumsum(squares[::-1])[::-1]
    scores = squares / np.maximum(sums, np.finfo("float64").tiny)
    return scores.astype("float32")
