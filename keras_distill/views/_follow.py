"""Labels, masks and weights that follow the images of a drawn view.

Values per sample change where layers mix images. Maps (masks and weights per
pixel) take each layer's drawing as the images do, see `_map_rules.py`.
"""

import keras
from keras import ops

from keras_distill.views import _layer_kinds
from keras_distill.views import _map_rules
from keras_distill.views import _maps
from keras_distill.views import _transformations
from keras_distill.views._places import check_rows
from keras_distill.views._places import find_place

# The number of classes, where integers can't be told from class indices.
UNKNOWN = -1


def follow(layers, values, transformations, images, num_classes=None):
    """Return values as they belong to a drawn view.

    See `ConsistentAugment.follow`.
    """
    tensor = ops.convert_to_tensor(values)
    drawn = list(zip(layers, transformations))
    per_sample = len(tensor.shape) <= 2
    if per_sample:
        check_rows(tuple(tensor.shape), layers, images)
    concerned = _layer_kinds.mixes if per_sample else _layer_kinds.concerns_maps
    if not any(map(concerned, layers)):
        return values
    if per_sample:
        return _samples_follow(tensor, drawn, num_classes)
    return _maps_follow(tensor, drawn, images, num_classes)


def _samples_follow(values, drawn, num_classes):
    values = _blendable(values, num_classes)
    for layer, transformation in drawn:
        if _layer_kinds.mixes(layer):
            values = _mixed_samples(layer, values, transformation)
    return values


def _blendable(values, num_classes):
    """Return values as floats; class indices as one-hot rows."""
    if num_classes == UNKNOWN and not keras.backend.is_float_dtype(
        values.dtype
    ):
        raise ValueError(
            "Class indices can't be blended. Received labels or masks of "
            f"dtype={keras.backend.standardize_dtype(values.dtype)}, shape="
            f"{tuple(values.shape)}. Pass `keras.ops.one_hot(labels, "
            "num_classes)`, or floats."
        )
    if num_classes in (None, UNKNOWN):
        return ops.cast(values, "float32")
    if len(values.shape) > 1 and values.shape[-1] == 1:
        values = ops.squeeze(values, -1)
    return _maps.one_hot(values, num_classes)


def _mixed_samples(layer, values, transformation):
    if _layer_kinds.is_keras(_layer_kinds.provider(layer, "transform_labels")):
        # `MixUp` and `CutMix` of Keras, whose methods take rows alone.
        weight = transformation["mix_weight"]
        return _maps.blend(values, weight, transformation["permutation_order"])
    # A weight per sample is given as a column, as labels are rows.
    rows = values[:, None] if len(values.shape) == 1 else values
    mixed = layer.transform_labels(
        rows, _transformations.copy(transformation), training=True
    )
    if tuple(mixed.shape)[1:] != tuple(rows.shape)[1:]:
        raise ValueError(
            f"`transform_labels` of the layer {layer.name!r} "
            f"({type(layer).__name__}) must keep the shape of what it gets. "
            f"Received: {tuple(rows.shape)}, returned: {tuple(mixed.shape)}."
        )
    return mixed[:, 0] if len(values.shape) == 1 else mixed


def _maps_follow(values, drawn, images, num_classes):
    place = find_place(
        tuple(values.shape), [layer for layer, _ in drawn], images
    )
    moved = values[..., None] if place.channels is None else values
    moved = ops.moveaxis(moved, 1, -1) if place.channels == 1 else moved
    has_classes = num_classes not in (None, UNKNOWN)
    blendable = False
    for layer, transformation in drawn:
        rule = _map_rules.rule_of(layer, place)
        if _layer_kinds.mixes(layer) and not blendable:
            # What is only pasted may stay as it is, if it is no class index.
            if has_classes or rule is not _map_rules.paste:
                moved = _blendable_maps(moved, num_classes, place)
                blendable = True
        moved = rule(layer, moved, transformation, place)
        place = place.after(layer)
    if place.channels is None and not (blendable and has_classes):
        return ops.squeeze(moved, -1)
    return ops.moveaxis(moved, -1, 1) if place.channels == 1 else moved


def _blendable_maps(values, num_classes, place):
    if num_classes not in (None, UNKNOWN) and values.shape[-1] != 1:
        raise ValueError(
            "Class indices per pixel have the shape (batch, height, width) or "
            f"(batch, height, width, 1). Received: shape={place.shape}, with "
            f"num_classes={num_classes}."
        )
    return _blendable(values, num_classes)
