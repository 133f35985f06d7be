"""RelationalLoss: the base of the losses that compare relations in features."""

import copy
import functools
import math

import keras
from keras import ops


class RelationalLoss(keras.losses.Loss):
    """Base of losses for a `Hint` between features of any width.

    They compare how the places of a feature, or the samples of a batch, relate
    to each other, and not the features. So they need no projector.

    A subclass implements `call` and returns one value per sample. Places and
    samples of weight 0 are padding: they are left out of every relation. What
    is left is weighed by the caller.

    - `relational`: true for losses that compare features of any width.
    - `same_places`: whether the features are compared place by place. Then the
      caller resizes the larger one. Others flatten whatever they get.

    Args:
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.
    """

    relational = True
    same_places = False

    def __init__(self, reduction, name, dtype):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred, sample_weight=None):
        """Return one value per sample, `(batch,)`.

        Args:
            y_true: the teacher's feature, `(batch, ..., channels)`.
            y_pred: the student's feature, `(batch, ..., channels)`.
            sample_weight: weights `(batch,)`, or of the places of the student's
                feature `(batch, ...)`, or `None`.
        """
        raise NotImplementedError

    def __call__(self, y_true, y_pred, sample_weight=None):
        # Keras weighs the values only after `call`, which has to know.
        bound = copy.copy(self)
        bound.call = functools.partial(self.call, sample_weight=sample_weight)
        if sample_weight is not None:
            weights = ops.convert_to_tensor(sample_weight)
            axes = tuple(range(1, len(weights.shape)))
            sample_weight = ops.mean(weights, axis=axes) if axes else weights
        return super(RelationalLoss, bound).__call__(
            y_true, y_pred, sample_weight
        )

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}


def mask_of(weights, feature):
    """Return which places of a feature count, as bool.

    Args:
        weights: `(batch,)`, or per place of one of the two features, or `None`.
        feature: `(batch, ..., channels)`.

    Returns:
        A mask that broadcasts to the feature, `(batch, ..., 1)`.

    Raises:
        ValueError: if the weights have other places than the feature.
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


def any_place(mask):
    """Return which samples have a place that counts, bool `(batch,)`."""
    axes = tuple(range(1, len(mask.shape)))
    return ops.any(mask, axis=axes) if axes else mask


def flat(feature, mask):
    """Return a feature as `(batch, all)`, with 0 at places that don't count."""
    feature = ops.where(mask, feature, 0)
    size = tuple(feature.shape)[1:]
    size = -1 if None in size else math.prod(size)
    return ops.reshape(
        feature, (-1 if size != -1 else ops.shape(feature)[0], size)
    )


def count_of(mask, axis=None):
    """Return how many count, float of at least 1."""
    return ops.maximum(ops.sum(ops.cast(mask, "float32"), axis=axis), 1.0)


def _of_places(mask, places):
    """Return a mask `(batch, ...)` resized to other places, by the nearest.

    As many places in another arrangement, such as patches of an image, are
    taken in their order.
    """
    given = tuple(mask.shape)[1:]
    if len(given) != len(places):
        known = None not in (*given, *places)
        if not known or math.prod(given) != math.prod(places):
            raise ValueError(
                "The weights must have the places of the feature. Received: "
                f"weights of places {given} for a feature of places {places}."
            )
        return ops.reshape(mask, (-1, *places))
    for axis, (old, new) in enumerate(zip(given, places), start=1):
        if old != new and None not in (old, new):
            nearest = [
                (2 * place + 1) * old // (2 * new) for place in range(new)
            ]
            mask = ops.take(mask, nearest, axis=axis)
    return mask
