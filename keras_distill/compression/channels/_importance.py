"""The importance of each channel: from weights, or given by the user."""

from collections.abc import Callable
from typing import Any
from typing import TypeAlias

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill._graphs._layers import values_by_layer
from keras_distill.compression.channels._coupling import Coupling

# `"l1"`, `"batch_norm"`, a function of a layer, or a dict of scores by layer.
Importance: TypeAlias = (
    str | Callable[[keras.layers.Layer], Any] | dict[str, Any]
)


def score_channels(
    importance: Importance, model: keras.Model, coupling: Coupling
) -> np.ndarray:
    """Return the total score of all joined channels.

    Args:
        importance: as in `prune_channels`.
        model: the model that contains the layers.
        coupling: its Coupling.

    Returns:
        An array with an entry for each number of the coupling. The score is at
        the root of the joined numbers, and NaN if there is none.
    """
    if importance == "l1":
        found = _by_kernels(coupling)
    elif importance == "batch_norm":
        found = _by_scales(coupling)
    else:
        found = _given(importance, model, coupling)
    roots = coupling.roots()
    total = np.zeros(len(roots))
    known = np.zeros(len(roots), bool)
    for numbers, scores in found:
        np.add.at(total, roots[numbers], scores)
        known[roots[numbers]] = True
    return np.where(known, total, np.nan)


def _by_kernels(coupling):
    for layer, made in coupling.made.items():
        yield made.numbers, made.sums(layer, lambda w: np.abs(_numpy(w)))


def _by_scales(coupling):
    for layer, cuts in coupling.cuts.items():
        if type(layer) is layers.BatchNormalization and layer.scale:
            yield cuts["gamma", 0], np.abs(_numpy(layer.gamma))


def _given(importance, model, coupling):
    if callable(importance):
        scores_of = {layer: importance(layer) for layer in coupling.made}
    elif isinstance(importance, dict):
        scores_of = {
            layer: scores
            for layer, (_, scores) in values_by_layer(
                model, importance, "importance"
            ).items()
        }
    else:
        raise ValueError(
            '`importance` must be "l1", "batch_norm", a function that takes a '
            "layer and returns the scores of its channels, or a dict of such "
            f"scores by layer name. Received: importance={importance!r}"
        )
    for layer, scores in scores_of.items():
        if scores is not None:
            yield _checked(layer, scores, coupling)


def _checked(layer, scores, coupling):
    if layer not in coupling.made:
        raise ValueError(
            "`importance` has scores for a layer that makes no channels. Give "
            "scores for a convolution, Dense or Embedding layer. "
            f"Received: scores for {layer.name!r}"
        )
    numbers = coupling.made[layer].numbers
    scores = np.asarray(ops.convert_to_numpy(scores), "float64")
    if scores.shape != numbers.shape or not np.isfinite(scores).all():
        raise ValueError(
            "`importance` must give one finite score per channel. Received: "
            f"scores of shape {scores.shape} for {layer.name!r}, which makes "
            f"{len(numbers)} channels"
        )
    return numbers, scores


def _numpy(variable):
    return np.asarray(ops.convert_to_numpy(variable), "float64")
