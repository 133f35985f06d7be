"""How much each sample and place counts: weights, masks and their reduction.

Values, weights and masks of one output agree in their leading axes: the batch,
then the places (tokens, pixels). A weight per sample counts for all places of
its sample, and a weight per place for that place alone. Keras aligns ranks that
differ by one; here every rank is aligned, and what can't be is refused.
"""

import keras
from keras import ops

from keras_distill import _backend
from keras_distill._keras_internals import get_keras_mask


class FunctionLoss(keras.losses.Loss):
    """A function of `(y_true, y_pred)` to values per sample, as a loss."""

    def __init__(self, function, **kwargs):
        super().__init__(name=getattr(function, "__name__", "loss"), **kwargs)
        self.call = function


def weighted_value(function, loss, target, output, weights):
    """Return the reduced value of a loss, weighed and masked per place.

    Args:
        function: maps `(target, output)` to values `(batch, places...)`.
        loss: the Keras loss that it is a part of, whose reduction and dtype
            are taken.
        target: a structure of tensors.
        output: a tensor. Its Keras mask counts, as in Keras's own losses.
        weights: `None`, or weights `(batch,)`, `(batch, 1)` or per place.

    Raises:
        ValueError: if the weights or the mask don't fit the values.
    """

    def converted(tensor):
        return ops.convert_to_tensor(tensor, dtype=loss.dtype)

    mask = get_keras_mask(output)
    values = function(
        keras.tree.map_structure(converted, target), converted(output)
    )
    if len(values.shape) == 0 and hasattr(loss, "predicts"):
        raise ValueError(
            f"A loss must return one value per sample. Received: one number "
            f"from {type(loss).__name__}, which can't be weighed. Leave out "
            "its own mean over the batch."
        )
    if mask is not None:
        values = mean_to_rank(values, len(mask.shape))
        _check_fits("mask", mask.shape, values.shape)
    if weights is not None:
        weights = filled(aligned(weights, values.shape), values)

    def given(y_true, y_pred):
        return values

    reduced = FunctionLoss(given, reduction=loss.reduction, dtype=loss.dtype)
    return reduced(output, output, weights)


def aligned(weights, shape):
    """Return weights of the rank of `shape`, which broadcast to it.

    Args:
        weights: `(batch,)`, `(batch, 1)`, or per place with or without a last
            axis of 1.
        shape: the shape of the values, `(batch, places...)`.

    Raises:
        ValueError: if the weights don't fit.
    """
    weights = ops.convert_to_tensor(weights)
    given, rank = tuple(weights.shape), len(shape)
    if len(given) == rank + 1 and given[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < rank:
        weights = ops.expand_dims(weights, axis=-1)
    _check_fits("sample_weight", weights.shape, shape, given)
    return weights


def filled(weights, values):
    """Return a copy of aligned weights that has the shape of the values.

    Beside a mask, Keras multiplies weights in place. On PyTorch they must have
    the shape of the mask then, and the caller's own array would change.
    """
    return ops.multiply(
        ops.cast(weights, "float32"), ops.ones_like(values, dtype="float32")
    )


def per_place(weights, mask, shape):
    """Return weights times mask, float of `shape`, or `None` without both.

    Args:
        weights: as for `aligned`, or `None`.
        mask: the Keras mask of an output, or `None`.
        shape: the shape of the places of that output, `(batch, places...)`.
    """
    counts = [w for w in (weights, mask) if w is not None]
    if not counts:
        return None
    product = 1.0
    for weight in counts:
        product = product * ops.cast(aligned(weight, shape), "float32")
    return product


def mean_to_rank(values, rank):
    """Return values with the axes after the first `rank` averaged."""
    extra = tuple(range(rank, len(values.shape)))
    return ops.mean(values, axis=extra) if extra else values


def _check_fits(name, shape, values_shape, given=None):
    fits = len(shape) == len(values_shape) and all(
        size in (1, None) or other in (size, None)
        for size, other in zip(shape, values_shape)
    )
    if not fits:
        raise ValueError(
            f"The {name} must have one value per sample or per place of the "
            f"values that it weighs. Received: {name} of shape "
            f"{tuple(given or shape)} for values of shape "
            f"{tuple(values_shape)}. A loss has to return one value per place, "
            "with the mean over the last axis alone, to be weighed per place."
        )


def log(tracker, value, output):
    """Add the value of a part of the loss for a batch to its log."""
    tracker.update_state(
        value * _backend.num_replicas(), sample_weight=ops.shape(output)[0]
    )
