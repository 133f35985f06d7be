"""Sample weights for features: a hint belongs to no output of the student."""

import warnings

from keras import ops
from keras import tree

from keras_distill._keras_internals import get_keras_mask
from keras_distill.losses import _weighting
from keras_distill.views import _images


def of_features(weights):
    """Return the sample weights that count for features, or `None`.

    Args:
        weights: sample weights of a batch, in the structure of the outputs.
    """
    leaves = [leaf for leaf in tree.flatten(weights) if leaf is not None]
    if len(leaves) > 1:
        warnings.warn(
            "The data has sample weights for several outputs, and a feature "
            "belongs to none of them: hints are not weighted. Received: "
            f"weights of shapes {[tuple(leaf.shape) for leaf in leaves]}. To "
            "weight the hints, pass one array of weights for all outputs.",
            stacklevel=2,
        )
        return None
    return leaves[0] if leaves else None


def at_places(weights, places):
    """Return weights `(batch, ...)` for the places of a feature.

    Weights per pixel are averaged over the area of each place. A feature of
    fewer axes, such as a pooled one, gets the mean over the missing axes.

    Args:
        weights: tensor `(batch, ...)`.
        places: shape `(batch, places...)` of the feature without its width.

    Raises:
        ValueError: if the weights do not fit the places.
    """
    weights = ops.convert_to_tensor(weights)
    given = tuple(weights.shape)
    if len(given) == len(places) + 1 and given[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    extra = tuple(range(len(places), len(weights.shape)))
    if extra:
        weights = ops.mean(ops.cast(weights, "float32"), axis=extra)
    for axis in range(1, len(weights.shape)):
        size, wanted = weights.shape[axis], places[axis]
        if size in (1, wanted) or None in (size, wanted):
            continue
        if len(places) < 3:
            raise ValueError(
                "The weights of a hint must have one value per sample or per "
                "place of the student's feature. A sequence cannot be "
                f"resampled. Received: weights of shape {given} for places "
                f"{tuple(places)}."
            )
        weights = ops.cast(weights, "float32")
        weights = _images.resize_axis(weights, axis, wanted)
    return weights


def per_place(weights, feature):
    """Return weights times mask for each place of a feature, or `None`.

    Args:
        weights: what `at_places` returned, or `None`.
        feature: `(batch, places..., width)`, whose Keras mask counts.
    """
    places = tuple(feature.shape)[:-1]
    counts = _weighting.per_place(weights, get_keras_mask(feature), places)
    if counts is None:
        return None
    return ops.broadcast_to(counts, ops.shape(feature)[:-1])


def per_sample(weights):
    """Return the mean weight of each sample, or `None`."""
    if weights is None or len(weights.shape) == 1:
        return weights
    return ops.mean(weights, axis=tuple(range(1, len(weights.shape))))
