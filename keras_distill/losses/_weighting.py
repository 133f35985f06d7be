"""Weights and masks per sample and place, and the reduction of a loss.

The values, weights and masks of one output have the same leading axes: the
batch, then the places (tokens, pixels). A weight per sample counts for all
places of this sample, and a weight per place only for this place. Keras aligns
ranks that differ by one. Here all ranks are aligned, and other shapes are
refused.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _backend
from keras_distill._keras_internals import get_keras_mask
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors


class FunctionLoss(keras.losses.Loss):
    """A Keras loss for a function `(y_true, y_pred) -> values per sample`.

    Args:
        function: the function.
        **kwargs: arguments of `keras.losses.Loss`.
    """

    def __init__(self, function: Callable, **kwargs: Any) -> None:
        super().__init__(name=getattr(function, "__name__", "loss"), **kwargs)
        self.call = function


def weighted_value(
    function: Callable[[Tensors, Tensor], Tensor],
    loss: keras.losses.Loss,
    target: Tensors,
    output: Tensor,
    weights: Tensor | None,
) -> Tensor:
    """Return the reduced value of a loss, weighted and masked per place.

    Args:
        function: maps `(target, output)` to values `(batch, places...)`.
        loss: the Keras loss that the function is a part of. Its reduction and
            dtype are used.
        target: a structure of tensors.
        output: a tensor. Its Keras mask is applied, as in Keras's own losses.
        weights: `None`, or weights `(batch,)`, `(batch, 1)` or per place.

    Raises:
        ValueError: if the shapes of the weights or the mask do not match the
            values.
    """
    mask = get_keras_mask(output)
    values = function(*converted(loss, (target, output)))
    if len(values.shape) == 0 and hasattr(loss, "predicts"):
        raise ValueError(
            "A loss must return one value per sample or place. Received: a "
            f"single number from {type(loss).__name__}. Remove the mean over "
            "the batch from its `call`, so that weights can be applied."
        )
    if mask is not None:
        values = mean_to_rank(values, len(mask.shape))
        _check_fits("mask", mask.shape, values.shape)
    if weights is not None:
        weights = filled(aligned(weights, values.shape), values)

    def computed_values(y_true, y_pred):
        return values

    # Keras applies its mask, the weights and the reduction.
    reduced = FunctionLoss(
        computed_values, reduction=loss.reduction, dtype=loss.dtype
    )
    return reduced(output, output, weights)


def converted(loss: keras.losses.Loss, tensors: Tensors) -> Tensors:
    """Return tensors in the dtype that a loss computes in."""

    def convert(tensor):
        tensor = ops.convert_to_tensor(tensor)
        # Half precision cannot represent large class indices.
        is_float = "float" in keras.backend.standardize_dtype(tensor.dtype)
        return ops.cast(tensor, loss.dtype if is_float else "float32")

    return keras.tree.map_structure(convert, tensors)


def aligned(weights: Tensor, shape: Sequence[int | None]) -> Tensor:
    """Return weights with the rank of `shape`, which broadcast to it.

    Args:
        weights: `(batch,)`, `(batch, 1)`, or per place with or without a last
            axis of size 1.
        shape: the shape of the values, `(batch, places...)`.

    Raises:
        ValueError: if the shapes do not match.
    """
    weights = ops.convert_to_tensor(weights)
    received, rank = tuple(weights.shape), len(shape)
    if len(received) == rank + 1 and received[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < rank:
        weights = ops.expand_dims(weights, axis=-1)
    _check_fits("sample_weight", weights.shape, shape, received)
    return weights


def filled(weights: Tensor, values: Tensor) -> Tensor:
    """Return a copy of aligned weights with the shape of the values.

    If there is a mask, Keras multiplies weights in place. On PyTorch, this
    requires weights of the shape of the mask, and it would change the caller's
    array.
    """
    return ops.multiply(
        ops.cast(weights, "float32"), ops.ones_like(values, dtype="float32")
    )


def per_place(
    weights: Tensor | None, mask: Tensor | None, shape: Sequence[int | None]
) -> Tensor | None:
    """Return weights times mask, or `None` if there are neither.

    Args:
        weights: as for `aligned`, or `None`.
        mask: the Keras mask of an output, or `None`.
        shape: the shape of the places of that output, `(batch, places...)`.

    Returns:
        A float tensor that broadcasts to `shape`.
    """
    counts = [w for w in (weights, mask) if w is not None]
    if not counts:
        return None
    product = 1.0
    for weight in counts:
        product = product * ops.cast(aligned(weight, shape), "float32")
    return product


def mean_to_rank(values: Tensor, rank: int) -> Tensor:
    """Return values averaged over all axes after the first `rank` axes."""
    extra = tuple(range(rank, len(values.shape)))
    return ops.mean(values, axis=extra) if extra else values


def _check_fits(name, shape, values_shape, received=None):
    fits = len(shape) == len(values_shape) and all(
        size in (1, None) or other in (size, None)
        for size, other in zip(shape, values_shape)
    )
    if not fits:
        raise ValueError(
            f"The {name} must have one value per sample or per place. "
            f"Received: {name} of shape {tuple(received or shape)} for loss "
            f"values of shape {tuple(values_shape)}. To use weights per place, "
            "the loss must return one value per place: a mean over the last "
            "axis only."
        )


def log(tracker: keras.metrics.Mean, value: Tensor, output: Tensor) -> None:
    """Add the value of a part of the loss for a batch to its log.

    Args:
        tracker: the metric that computes the mean over the epoch.
        value: a scalar.
        output: any tensor of this batch; only its batch size is read.
    """
    tracker.update_state(
        value * _backend.num_replicas(), sample_weight=ops.shape(output)[0]
    )
