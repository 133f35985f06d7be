"""Distances between values: what `ValueMatching` compares with."""

import keras
from keras import ops

from keras_distill.losses import _label_loss
from keras_distill.losses import _shapes

# A vector of which every element is smaller counts as zero.
_ZERO = 1e-12


def resolve(loss, argument):
    """Return a function `(target, outputs) -> values` for a distance.

    Args:
        loss: `"cosine"`, a Keras loss, its name, or a function.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: if nobody knows whether the loss takes logits.
    """
    if isinstance(loss, str) and loss == "cosine":
        return cosine_distance
    if _label_loss.has_from_logits(loss):
        raise ValueError(
            f"`{argument}` takes logits or probabilities, and values don't "
            f"tell which they are. Received: {argument}="
            f"{_label_loss.name_of(loss)}. Give a loss object that says so, "
            "such as keras.losses.CategoricalCrossentropy(from_logits=True)."
        )
    found = keras.losses.get(loss)
    if found is None:
        raise ValueError(f"`{argument}` must be a loss. Received: None")
    return found.call if isinstance(found, keras.losses.Loss) else found


def is_cosine(loss):
    """Tell whether a loss looks at the direction of vectors alone."""
    return "cosine" in _label_loss.name_of(loss).lower()


def cosine_distance(first, second):
    """Return `1 - cos` of two vectors, `(..., units)` to `(...)`.

    It is half the squared distance of the two unit vectors: the same number,
    but it keeps its digits where they are close. A vector of zeros has no
    direction and stays as it is, so two of them are at a distance of 0, and
    one alone at 1/2.
    """
    difference = ops.subtract(unit_vector(first), unit_vector(second))
    return 0.5 * ops.sum(ops.square(difference), axis=-1)


def unit_vector(values):
    """Return the vectors on the last axis at a length of 1.

    They are divided by their largest element first: the squares of very large
    and of very small ones are no float32 numbers.
    """
    peak = ops.max(ops.abs(values), axis=-1, keepdims=True)
    peak = ops.stop_gradient(ops.where(peak < _ZERO, 1.0, peak))
    scaled = values / peak
    square = ops.sum(ops.square(scaled), axis=-1, keepdims=True)
    # The root is taken of what is not 0, for the sake of its gradient.
    return scaled / ops.sqrt(ops.where(square < 0.5, 1.0, square))


def labels_like(labels, outputs, loss):
    """Return labels as a loss takes them beside the outputs.

    Class indices stay what they are, and so do labels of any other shape for a
    loss that the user wrote.

    Raises:
        ValueError: if Keras would broadcast the labels without a word.
    """
    if loss != "cosine" and _label_loss.is_sparse(loss):
        _label_loss.as_one_hot_or_sparse(labels, outputs.shape)
        return labels
    if _shapes.fits(labels.shape, outputs.shape):
        return _shapes.like(labels, outputs)
    if loss == "cosine" or _label_loss.is_of_keras(keras.losses.get(loss)):
        raise ValueError(
            f"Labels of shape {tuple(labels.shape)} don't fit a student that "
            f"returns {tuple(outputs.shape)}. Give one value for each output, "
            f"of shape {tuple(outputs.shape)}."
        )
    return labels
