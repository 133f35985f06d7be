"""What travels through a step of Keras: from the batch to the loss.

    batch -> unpack -> StepInputs, Targets -> Distiller.call -> StepOutputs
          -> compute_loss, compute_metrics

Keras hands these structures on without reading them. `StepInputs` tells `call`
that it runs inside a step, where features and masks have to come along;
`predict` and a plain call pass tensors and get the student's outputs alone.
"""

import typing

import keras
import numpy as np
from keras import tree

from keras_distill._keras_internals import with_keras_mask
from keras_distill.recording import _recorded_batch


class StepInputs(typing.NamedTuple):
    """The student's view of a batch, inside a step."""

    view: typing.Any


class StepOutputs(typing.NamedTuple):
    """The student's outputs in a step, its captured features, and its masks.

    On JAX, a tensor loses its Keras mask between the gradient and the metrics.
    So the mask of each output travels beside it.
    """

    outputs: typing.Any
    features: list
    masks: list


def outputs_and_features(y_pred):
    """Return `(outputs, features)` of what the student returned in a step."""
    if not isinstance(y_pred, StepOutputs):
        return y_pred, []
    for output, mask in zip(tree.flatten(y_pred.outputs), y_pred.masks):
        with_keras_mask(output, mask)
    return y_pred.outputs, y_pred.features


def unpack(data):
    """Return `(x, y, sample_weight, recorded)` of a batch.

    `y` is `None` for empty labels (see `labels_or_empty`). `recorded` is
    the `RecordedBatch` of a replayed batch, or `None`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    leaves = [leaf for leaf in tree.flatten(y) if leaf is not None]
    if all(tuple(leaf.shape)[1:] == (0,) for leaf in leaves):
        y = None
    x, recorded = _recorded_batch.split(x)
    return x, y, sample_weight, recorded


def labels_or_empty(x, y, arguments):
    """Return `y`, or empty labels `(n, 0)` if there are weights without labels.

    Keras drops `sample_weight` if `y=None`. `unpack` turns empty labels into
    `None` again.

    Args:
        x, y: as for `fit()`.
        arguments: dict of the other arguments of `fit()` or `evaluate()`.

    Raises:
        ValueError: if there is a `class_weight` and no labels.
    """
    if y is not None:
        return y
    if arguments.get("class_weight") is not None and _are_arrays(x):
        raise ValueError(
            "`class_weight` weights samples by their labels. Received: "
            "`class_weight` and no labels. Pass `(x, y)`, or weight the "
            "samples with `sample_weight`."
        )
    if arguments.get("sample_weight") is None:
        return None
    return np.zeros((len(tree.flatten(x)[0]), 0), "float32")


def with_labels_or_empty(data):
    """Return validation data `(x, None, sample_weight)` with empty labels."""
    if not (isinstance(data, (tuple, list)) and len(data) == 3):
        return data
    x, y, sample_weight = data
    y = labels_or_empty(x, y, {"sample_weight": sample_weight})
    return x, y, sample_weight


def _are_arrays(x):
    return all(hasattr(leaf, "shape") for leaf in tree.flatten(x))
