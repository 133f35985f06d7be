"""How each layer transforms maps: one rule per kind of layer.

A map is a mask, or weights or labels per pixel. Keras's own methods for masks
cast to the layer's dtype, interpolate where images are enlarged, or cannot be
compiled. So transformations are applied here with nearest-neighbour
interpolation, in the dtype of the map. A rule is a function `(layer, maps,
transformation, layout) -> maps` on maps `(batch, height, width, channels)`. A
layer without a rule is refused.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_distill._graphs._elementwise import is_of_keras
from keras_distill._typing import Tensor
from keras_distill.views import _layer_kinds
from keras_distill.views import _maps as map_functions
from keras_distill.views import _transformations
from keras_distill.views._inception_crop import InceptionCrop
from keras_distill.views._map_layout import MapLayout
from keras_distill.views._mix_up import MixUp

_IN_PIPELINE = "Or augment in the data pipeline, before the Distiller."


def rule_of(
    layer: keras.layers.Layer, layout: MapLayout
) -> Callable[..., Tensor]:
    """Return the rule of a layer.

    Raises:
        ValueError: if a map cannot follow the layer.
    """
    known = _layer_kinds.known_class(layer, tuple(_RULES))
    if known is not None:
        return _RULES[known]
    owner = _layer_kinds.defining_class(layer, "transform_segmentation_masks")
    if owner is None or owner in _RULES or is_of_keras(owner):
        _refuse(
            layer,
            layout,
            "it has no custom method for masks. Add "
            "`transform_segmentation_masks(masks, transformation, training="
            "True)` with nearest-neighbour interpolation; if the layer only "
            "changes colours, return the masks unchanged",
        )
    return _by_method


def _refuse(layer, layout, reason):
    raise ValueError(
        f"Values of shape {layout.map_shape} cannot follow the layer "
        f"{layer.name!r} ({type(layer).__name__}): {reason}. {_IN_PIPELINE}"
    )


def _check_resolution(layer, layout):
    if layout.stride != 1:
        _refuse(
            layer,
            layout,
            "it requires maps of the height and width of the images, "
            f"{layout.image_size}",
        )


def _keep(layer, maps, transformation, layout):
    """Keep the maps, for layers that only change colours."""
    return maps


def _flip(layer, maps, transformation, layout):
    """Apply `keras.layers.RandomFlip`, at any resolution."""
    for axis, direction in ((2, "horizontal"), (1, "vertical")):
        if direction in layer.mode:
            flipped = ops.flip(maps, axis=axis)
            maps = ops.where(transformation["flips"], flipped, maps)
    return maps


def _size_and_stride(layer, layout):
    """Return the size of a map after a layer that changes the image size.

    The stride is that of the layout. It is refused if unknown.
    """
    if layout.stride is None:
        _refuse(layer, layout, "height and width must be static")
    size = (layer.height, layer.width)
    if any(length % layout.stride for length in size):
        _refuse(
            layer,
            layout,
            f"the image size after it, {size}, must be a multiple of "
            f"{layout.stride}, the image pixels per pixel of the map",
        )
    return tuple(length // layout.stride for length in size), layout.stride


def _inception_crop(layer, maps, transformation, layout):
    """Apply `InceptionCrop`, with one box per map."""
    size, _ = _size_and_stride(layer, layout)
    return map_functions.render_boxes(maps, transformation["boxes"], size)


def _random_crop(layer, maps, transformation, layout):
    """Apply `keras.layers.RandomCrop`, which enlarges images if too small."""
    size, stride = _size_and_stride(layer, layout)
    top, left = transformation
    height, width = layout.image_size
    if height > layer.height and width > layer.width:
        box = (top, left, layer.height, layer.width)
    else:
        box = (
            top,
            left,
            min(layer.height, height - top),
            min(layer.width, width - left),
        )
    return map_functions.render_box(maps, box, size, stride)


def _center_crop(layer, maps, transformation, layout):
    """Apply `keras.layers.CenterCrop`, which enlarges images if too small."""
    size, stride = _size_and_stride(layer, layout)
    height, width = layout.image_size
    box = _largest_box(layer, layout)
    if height >= layer.height and width >= layer.width:
        top, left = (height - layer.height) // 2, (width - layer.width) // 2
        box = (top, left, layer.height, layer.width)
    return map_functions.render_box(maps, box, size, stride)


def _resize(layer, maps, transformation, layout):
    """Apply `keras.layers.Resizing`."""
    if layer.pad_to_aspect_ratio:
        _refuse(
            layer,
            layout,
            "with `pad_to_aspect_ratio=True` it adds pixels that have no "
            "label. Use `crop_to_aspect_ratio=True`",
        )
    size, stride = _size_and_stride(layer, layout)
    box = (0, 0, *layout.image_size)
    if layer.crop_to_aspect_ratio:
        box = _largest_box(layer, layout)
    return map_functions.render_box(maps, box, size, stride)


def _largest_box(layer, layout):
    """Return the central box with the layer's aspect ratio, as in Keras."""
    height, width = layout.image_size
    box_height = int(float(width * layer.height) / layer.width)
    box_height = max(min(height, box_height), 1)
    box_width = int(float(height * layer.width) / layer.height)
    box_width = max(min(width, box_width), 1)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width


def _affine(layer, maps, transformation, layout):
    """Apply Keras's rotation, shear, translation and zoom.

    The layer transforms an image whose pixels contain their own row and column.
    The result contains the source of each pixel.
    """
    _check_resolution(layer, layout)
    if layer.fill_mode == "constant":
        _refuse(
            layer,
            layout,
            "with `fill_mode='constant'` it adds pixels that have no label. "
            "Use 'reflect', 'nearest' or 'wrap'; or write a subclass whose "
            "`transform_segmentation_masks` gives them the label that your "
            "loss ignores",
        )
    height, width = layout.image_size
    grid = ops.meshgrid(
        ops.arange(height, dtype="float32"),
        ops.arange(width, dtype="float32"),
        indexing="ij",
    )
    first = layer.data_format == "channels_first"
    grid = ops.stack(grid, axis=0 if first else -1)[None]
    grid = ops.tile(grid, (ops.shape(maps)[0], 1, 1, 1))
    # Keras's method uses nearest neighbour. It does not cast float32.
    grid = layer.transform_segmentation_masks(
        grid, _transformations.copy(transformation), training=True
    )
    rows, columns = ops.unstack(
        ops.cast(ops.round(grid), "int32"), 2, axis=1 if first else -1
    )
    return map_functions.gather(maps, rows * width + columns)


def _perspective(layer, maps, transformation, layout):
    """Refuse `keras.layers.RandomPerspective`: it fills with a constant."""
    _refuse(
        layer,
        layout,
        "it adds pixels that have no label. Use RandomShear or RandomRotation; "
        "or write a subclass whose `transform_segmentation_masks` gives them "
        "the label that your loss ignores",
    )


def paste(
    layer: keras.layers.Layer,
    maps: Tensor,
    transformation: Any,
    layout: MapLayout,
) -> Tensor:
    """Apply `keras.layers.CutMix`: paste the rectangle of the images."""
    _check_resolution(layer, layout)
    pasted = transformation["batch_masks"]
    if layer.data_format == "channels_first":
        pasted = ops.moveaxis(pasted, 1, -1)
    partners = ops.take(maps, transformation["permutation_order"], axis=0)
    return ops.where(pasted[..., :1], partners, maps)


def _mix_up(layer, maps, transformation, layout):
    """Apply `MixUp`."""
    weight, partner = transformation["weight"], transformation["partner"]
    return map_functions.blend(maps, weight, partner)


def _keras_mix_up(layer, maps, transformation, layout):
    """Apply `keras.layers.MixUp`."""
    weight = transformation["mix_weight"]
    partner = transformation["permutation_order"]
    return map_functions.blend(maps, weight, partner)


def _by_method(layer, maps, transformation, layout):
    """Apply a custom layer by its method `transform_segmentation_masks`."""
    _check_resolution(layer, layout)
    first = layout.data_format == "channels_first"
    given = ops.moveaxis(maps, -1, 1) if first else maps
    moved = layer.transform_segmentation_masks(
        given, _transformations.copy(transformation), training=True
    )
    moved = ops.moveaxis(moved, 1, -1) if first else moved
    expected = (*layout.after(layer).image_size, maps.shape[-1])
    if tuple(moved.shape)[1:] != expected:
        raise ValueError(
            "`transform_segmentation_masks` of the layer "
            f"{layer.name!r} ({type(layer).__name__}) must return masks with "
            "the height and width of the transformed images, and the same "
            f"number of channels: {expected} after the batch axis. "
            f"Received: {tuple(moved.shape)[1:]}."
        )
    if keras.backend.is_int_dtype(maps.dtype):
        moved = ops.round(moved)
    return ops.cast(moved, maps.dtype)


def _rules(**rules):
    """Return rules by class, for the layers that this version of Keras has."""
    return {
        getattr(keras.layers, name): rule
        for name, rule in rules.items()
        if hasattr(keras.layers, name)
    }


_RULES = {
    InceptionCrop: _inception_crop,
    MixUp: _mix_up,
    **dict.fromkeys(_layer_kinds.IN_PLACE, _keep),
    **_rules(
        CenterCrop=_center_crop,
        CutMix=paste,
        MixUp=_keras_mix_up,
        RandomCrop=_random_crop,
        RandomFlip=_flip,
        RandomPerspective=_perspective,
        RandomRotation=_affine,
        RandomShear=_affine,
        RandomTranslation=_affine,
        RandomZoom=_affine,
        Resizing=_resize,
    ),
}
