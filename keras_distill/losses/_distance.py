"""The distances of `ValueMatching`."""

from collections.abc import Callable

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _label_loss
from keras_distill.losses import _shapes

# A vector is zero if all its elements are smaller than this.
_ZERO = 1e-12


def resolve(
    loss: str | keras.losses.Loss | Callable, argument: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function `(target, outputs) -> values` for a distance.

    Args:
        loss: `"cosine"`, a Keras loss, its name, or a function.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: if it is unknown whether the loss takes logits.
    """
    if isinstance(loss, str) and loss == "cosine":
        return cosine_distance
    if _label_loss.has_from_logits(loss):
        raise ValueError(
            f"`{argument}` requires `from_logits`, because it takes logits or "
            f"probabilities. Received: {argument}={_label_loss.name_of(loss)}. "
            "Pass a loss object with this argument, such as "
            "keras.losses.CategoricalCrossentropy(from_logits=True)."
        )
    found = keras.losses.get(loss)
    if found is None:
        raise ValueError(f"`{argument}` must be a loss. Received: None")
    return found.call if isinstance(found, keras.losses.Loss) else found


def is_cosine(loss: str | keras.losses.Loss | Callable) -> bool:
    """Return whether a loss compares only the direction of vectors."""
    return "cosine" in _label_loss.name_of(loss).lower()


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return `1 - cos` of vectors `(..., units)`, of shape `(...)`.

    It is computed as half the squared distance of the two unit vectors. This is
    the same number, but it keeps its digits where the vectors are close. Zero
    vectors have no direction: the distance of two zero vectors is 0, and the
    distance of a zero vector to another vector is 1/2.
    """
    difference = ops.subtract(unit_vector(first), unit_vector(second))
    return 0.5 * ops.sum(ops.square(difference), axis=-1)


def unit_vector(values: Tensor) -> Tensor:
    """Return the vectors on the last axis, scaled to length 1.

    They are first divided by their largest element, because the squares of very
    large and very small elements overflow or underflow in float32.
    """
    peak = ops.max(ops.abs(values), axis=-1, keepdims=True)
    peak = ops.stop_gradient(ops.where(peak < _ZERO, 1.0, peak))
    scaled = values / peak
    square = ops.sum(ops.square(scaled), axis=-1, keepdims=True)
    # The gradient of the root at 0 is infinite, so its input is never 0.
    return scaled / ops.sqrt(ops.where(square < 0.5, 1.0, square))


def labels_like(
    labels: Tensor,
    outputs: Tensor,
    loss: str | keras.losses.Loss | Callable,
) -> Tensor:
    """Return labels in the shape that a loss requires for the outputs.

    Class indices are returned unchanged, and so are labels of any other shape
    for a custom loss.

    Raises:
        ValueError: if a loss of Keras would broadcast labels of the wrong
            shape.
    """
    if loss != "cosine" and _label_loss.is_sparse(loss):
        _label_loss.as_one_hot_or_sparse(labels, outputs.shape)
        return labels
    if _shapes.fits(labels.shape, outputs.shape):
        return _shapes.like(labels, outputs)
    if loss == "cosine" or _label_loss.is_of_keras(keras.losses.get(loss)):
        raise ValueError(
            "The labels must have the shape of the student's outputs. "
            f"Received: labels of shape {tuple(labels.shape)}, outputs of "
            f"shape {tuple(outputs.shape)}. Pass one value for each output."
        )
    return labels
