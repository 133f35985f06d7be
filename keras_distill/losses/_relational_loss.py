"""RelationalLoss: the base class of losses on relations within features."""

import functools
import math
from typing import Any

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._weighting import FunctionLoss


class RelationalLoss(keras.losses.Loss):
    """Base class of losses for a `Hint` between features of any width.

    These losses compare relations between the places of a feature, or between
    the samples of a batch, and not the features themselves. So they require no
    projector.

    A subclass implements `call` and returns one value per sample. Places and
    samples of weight 0 are padding: they are left out of every relation. The
    caller multiplies the values by the weights.

    - `relational`: true for losses that compare features of any width.
    - `same_places`: whether the features are compared place by place. If so,
      the caller resizes the larger one. Otherwise the loss flattens them.

    Args:
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.
    """

    relational: bool = True
    same_places: bool = False

    def __init__(
        self, reduction: str | None, name: str | None, dtype: str | None
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Return one value per sample, `(batch,)`.

        Args:
            y_true: the teacher's feature, `(batch, ..., channels)`.
            y_pred: the student's feature, `(batch, ..., channels)`.
            sample_weight: weights `(batch,)`, or weights of the places of the
                student's feature `(batch, ...)`, or `None`.
        """
        raise NotImplementedError

    def __call__(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        # Keras applies the weights after `call`, and does not pass them to it.
        call = functools.partial(self.call, sample_weight=sample_weight)
        loss = FunctionLoss(call, reduction=self.reduction, dtype=self.dtype)
        if sample_weight is not None:
            weights = ops.convert_to_tensor(sample_weight)
            axes = tuple(range(1, len(weights.shape)))
            sample_weight = ops.mean(weights, axis=axes) if axes else weights
        return loss(y_true, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


def mask_of(weights: Tensor | None, feature: Tensor) -> Tensor:
    """Return which places of a feature count, as bool.

    Args:
        weights: `(batch,)`, or per place of one of the two features, or `None`.
        feature: `(batch, ..., channels)`.

    Returns:
        A mask that broadcasts to the feature, `(batch, ..., 1)`.

    Raises:
        ValueError: if the places of the weights and the feature differ.
    """
    rank = len(feature.shape)
    if weights is None:
        weights = ops.ones((ops.shape(feature)[0],))
    mask = ops.not_equal(ops.convert_to_tensor(weights), 0)
    if rank == 2:  # A pooled feature has no places.
        mask = any_place(mask)
    if 1 < len(mask.shape):
        mask = _of_places(mask, tuple(feature.shape)[1:-1])
    while len(mask.shape) < rank:
        mask = ops.expand_dims(mask, axis=-1)
    return mask


def any_place(mask: Tensor) -> Tensor:
    """Return which samples are true at any place, bool `(batch,)`."""
    # Keras 3.14 cannot reduce several axes at once on PyTorch.
    while len(mask.shape) > 1:
        mask = ops.any(mask, axis=-1)
    return mask


def flat(feature: Tensor, mask: Tensor) -> Tensor:
    """Return a feature as `(batch, all)`, with 0 at places that are masked."""
    feature = ops.where(mask, feature, 0)
    sizes = tuple(feature.shape)[1:]
    if None in sizes:
        return ops.reshape(feature, (ops.shape(feature)[0], -1))
    return ops.reshape(feature, (-1, math.prod(sizes)))


def count_of(mask: Tensor, axis: int | None = None) -> Tensor:
    """Return the number of places that count, float of at least 1."""
    return ops.maximum(ops.sum(ops.cast(mask, "float32"), axis=axis), 1.0)


def _of_places(mask, places):
    """Return a mask `(batch, ...)` resized to other places, nearest neighbour.

    If the rank differs and the number of places is the same, such as for image
    patches and tokens, the places are matched in order.
    """
    mask_places = tuple(mask.shape)[1:]
    if len(mask_places) != len(places):
        known = None not in (*mask_places, *places)
        if not known or math.prod(mask_places) != math.prod(places):
            raise ValueError(
                "The weights must have the places of the feature. Received: "
                f"weights of places {mask_places} for a feature of places "
                f"{places}. Pass one weight per sample, or per place."
            )
        return ops.reshape(mask, (-1, *places))
    for axis, (old, new) in enumerate(zip(mask_places, places), start=1):
        if old != new and None not in (old, new):
            nearest = [
                (2 * place + 1) * old // (2 * new) for place in range(new)
            ]
            mask = ops.take(mask, nearest, axis=axis)
    return mask
