"""Labels, masks and weights that follow the images of a drawn view.

Values per sample change if layers mix images. Maps (masks and weights per
pixel) are transformed by each layer as the images are, see `_map_rules.py`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._graphs._elementwise import is_of_keras
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.views import _layer_kinds
from keras_distill.views import _map_rules
from keras_distill.views import _maps
from keras_distill.views import _transformations
from keras_distill.views._map_layout import check_not_flattened
from keras_distill.views._map_layout import find_layout

# The number of classes if it is unknown. Integers are then refused where they
# would be blended, because they could be class indices.
UNKNOWN = -1


def follow(
    layers: Sequence[keras.layers.Layer],
    values: Tensor,
    transformations: Sequence[Any],
    images: Tensors,
    num_classes: int | None = None,
) -> Tensor:
    """Return values changed as the images of a drawn view.

    See `ConsistentAugment.follow`.
    """
    tensor = ops.convert_to_tensor(values)
    drawn = list(zip(layers, transformations))
    if len(tensor.shape) <= 2:
        check_not_flattened(tuple(tensor.shape), layers, images)
        if not any(map(_layer_kinds.mixes_labels, layers)):
            return values
        return _follow_samples(tensor, drawn, num_classes)
    if not any(map(_layer_kinds.changes_maps, layers)):
        return values
    return _follow_maps(tensor, drawn, images, num_classes)


def _follow_samples(values, drawn, num_classes):
    values = _as_floats(values, num_classes)
    for layer, transformation in drawn:
        if _layer_kinds.mixes_labels(layer):
            values = _mixed_samples(layer, values, transformation)
    return values


def _as_floats(values, num_classes):
    """Return values as floats that can be blended, class indices as one-hot."""
    if num_classes == UNKNOWN and not keras.backend.is_float_dtype(
        values.dtype
    ):
        raise ValueError(
            "Class indices cannot be blended. Received: labels or masks of "
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
    owner = _layer_kinds.defining_class(layer, "transform_labels")
    if is_of_keras(owner):
        # `MixUp` and `CutMix` of Keras. Their methods take only rows.
        weight = transformation["mix_weight"]
        return _maps.blend(values, weight, transformation["permutation_order"])
    # Weights per sample are passed as a column, because labels are rows.
    rows = values[:, None] if len(values.shape) == 1 else values
    mixed = layer.transform_labels(
        rows, _transformations.copy(transformation), training=True
    )
    if tuple(mixed.shape)[1:] != tuple(rows.shape)[1:]:
        raise ValueError(
            f"`transform_labels` of the layer {layer.name!r} "
            f"({type(layer).__name__}) must keep the shape of the labels. "
            f"Received: labels of shape {tuple(rows.shape)}, returned: "
            f"{tuple(mixed.shape)}."
        )
    return mixed[:, 0] if len(values.shape) == 1 else mixed


def _follow_maps(values, drawn, images, num_classes):
    layout = find_layout(
        tuple(values.shape), [layer for layer, _ in drawn], images
    )
    # Rules take maps of shape (batch, height, width, channels).
    maps = values[..., None] if layout.channel_axis is None else values
    maps = ops.moveaxis(maps, 1, -1) if layout.channel_axis == 1 else maps
    has_classes = num_classes not in (None, UNKNOWN)
    are_floats = False
    for layer, transformation in drawn:
        rule = _map_rules.rule_of(layer, layout)
        if _layer_kinds.mixes_labels(layer) and not are_floats:
            # Pasted values keep their dtype, except for class indices.
            if has_classes or rule is not _map_rules.paste:
                maps = _maps_as_floats(maps, num_classes, layout)
                are_floats = True
        maps = rule(layer, maps, transformation, layout)
        layout = layout.after(layer)
    if layout.channel_axis is None and not (are_floats and has_classes):
        return ops.squeeze(maps, -1)
    return ops.moveaxis(maps, -1, 1) if layout.channel_axis == 1 else maps


def _maps_as_floats(values, num_classes, layout):
    if num_classes not in (None, UNKNOWN) and values.shape[-1] != 1:
        raise ValueError(
            "Class indices per pixel must have the shape (batch, height, "
            "width) or (batch, height, width, 1). Received: shape="
            f"{layout.map_shape}, with num_classes={num_classes}."
        )
    return _as_floats(values, num_classes)
