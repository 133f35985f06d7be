"""What travels through a step of Keras: from the batch to the loss.

    batch -> unpack -> StepInputs, Targets -> Distiller.call -> StepOutputs
          -> compute_loss, compute_metrics

Keras hands these structures on without reading them. `StepInputs` tells `call`
that it runs inside a step, where features and masks have to come along;
`predict` and a plain call pass tensors and get the student's outputs alone.
"""

import typing

import keras
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

    `y` is `None` for empty labels (see `_fit_arguments.py`). `recorded` is
    the `RecordedBatch` of a replayed batch, or `None`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    leaves = [leaf for leaf in tree.flatten(y) if leaf is not None]
    if all(tuple(leaf.shape)[1:] == (0,) for leaf in leaves):
        y = None
    x, recorded = _recorded_batch.split(x)
    return x, y, sample_weight, recorded
