"""How each layer's drawing moves a map: one rule per kind of layer.

Keras's own methods for masks cast to the layer's dtype, interpolate where
images have to be enlarged, or leave the compiled step. So a drawing is applied
here with nearest neighbour, in the map's own dtype. A rule is a function
`(layer, maps, transformation, place) -> maps` on maps `(batch, height, width,
channels)`; a layer without one is refused.
"""

import keras
from keras import ops

from keras_distill.views import _layer_kinds
from keras_distill.views import _maps as map_functions
from keras_distill.views import _transformations
from keras_distill.views._inception_crop import InceptionCrop
from keras_distill.views._mix_up import MixUp

_IN_PIPELINE = "Or augment in the data pipeline, before the Distiller."


def rule_of(layer, place):
    """Return the rule of a layer.

    Raises:
        ValueError: if a map can't follow the layer.
    """
    known = _layer_kinds.known_class(layer, tuple(_RULES))
    if known is not None:
        return _RULES[known]
    owner = _layer_kinds.provider(layer, "transform_segmentation_masks")
    if owner is None or owner in _RULES or _layer_kinds.is_keras(owner):
        _refuse(
            layer,
            place,
            "it does not say what it does to masks. Write the method "
            "`transform_segmentation_masks(masks, transformation, training="
            "True)`, with nearest neighbour; return the masks unchanged if "
            "the layer only changes colours",
        )
    return by_method


def _refuse(layer, place, reason):
    raise ValueError(
        f"Values of shape {place.shape} can't follow the layer {layer.name!r} "
        f"({type(layer).__name__}): {reason}. {_IN_PIPELINE}"
    )


def _check_resolution(layer, place):
    if place.stride != 1:
        _refuse(
            layer,
            place,
            "it takes maps of the images' own height and width, which are "
            f"{place.image_size}",
        )


def keep(layer, maps, transformation, place):
    """Layers that change colours."""
    return maps


def flip(layer, maps, transformation, place):
    """`keras.layers.RandomFlip`, at any resolution."""
    for axis, direction in ((2, "horizontal"), (1, "vertical")):
        if direction in layer.mode:
            flipped = ops.flip(maps, axis=axis)
            maps = ops.where(transformation["flips"], flipped, maps)
    return maps


def _size(layer, place):
    """Return the size of a map behind a layer that gives images a size."""
    if place.stride is None:
        _refuse(layer, place, "height and width must be known beforehand")
    size = (layer.height, layer.width)
    if any(length % place.stride for length in size):
        _refuse(
            layer,
            place,
            f"images of {size} have no map of whole pixels where one spans "
            f"{place.stride} pixels of the images",
        )
    return tuple(length // place.stride for length in size)


def inception_crop(layer, maps, transformation, place):
    """`InceptionCrop`: each map has a box of its own."""
    boxes = transformation["boxes"]
    return map_functions.render_boxes(maps, boxes, _size(layer, place))


def random_crop(layer, maps, transformation, place):
    """`keras.layers.RandomCrop`, which enlarges images that are too small."""
    size = _size(layer, place)
    top, left = transformation
    height, width = place.image_size
    if height > layer.height and width > layer.width:
        box = (top, left, layer.height, layer.width)
    else:
        box = (
            top,
            left,
            min(layer.height, height - top),
            min(layer.width, width - left),
        )
    return map_functions.render_box(maps, box, size, place.stride)


def center_crop(layer, maps, transformation, place):
    """`keras.layers.CenterCrop`, which enlarges images that are too small."""
    size = _size(layer, place)
    height, width = place.image_size
    box = _largest_box(layer, place)
    if height >= layer.height and width >= layer.width:
        top, left = (height - layer.height) // 2, (width - layer.width) // 2
        box = (top, left, layer.height, layer.width)
    return map_functions.render_box(maps, box, size, place.stride)


def resize(layer, maps, transformation, place):
    """`keras.layers.Resizing`."""
    if layer.pad_to_aspect_ratio:
        _refuse(
            layer,
            place,
            "with `pad_to_aspect_ratio=True` it adds pixels that have no "
            "label. Use `crop_to_aspect_ratio=True`",
        )
    size = _size(layer, place)
    box = (0, 0, *place.image_size)
    if layer.crop_to_aspect_ratio:
        box = _largest_box(layer, place)
    return map_functions.render_box(maps, box, size, place.stride)


def _largest_box(layer, place):
    """Return the central box that has the layer's aspect ratio, as Keras."""
    height, width = place.image_size
    box_height = int(float(width * layer.height) / layer.width)
    box_height = max(min(height, box_height), 1)
    box_width = int(float(height * layer.width) / layer.height)
    box_width = max(min(width, box_width), 1)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width


def affine(layer, maps, transformation, place):
    """Keras's rotation, shear, translation and zoom.

    The layer moves an image whose pixels hold their own row and column. What
    comes out says from where each pixel was taken.
    """
    _check_resolution(layer, place)
    if layer.fill_mode == "constant":
        _refuse(
            layer,
            place,
            "with `fill_mode='constant'` it adds pixels that have no label. "
            "Use 'reflect', 'nearest' or 'wrap'; or, in a subclass, write "
            "`transform_segmentation_masks`, which gives them the label that "
            "your loss ignores",
        )
    height, width = place.image_size
    grid = ops.meshgrid(
        ops.arange(height, dtype="float32"),
        ops.arange(width, dtype="float32"),
        indexing="ij",
    )
    first = layer.data_format == "channels_first"
    grid = ops.stack(grid, axis=0 if first else -1)[None]
    grid = ops.tile(grid, (ops.shape(maps)[0], 1, 1, 1))
    # Keras's method takes nearest neighbour, and here casts nothing.
    grid = layer.transform_segmentation_masks(
        grid, _transformations.copy(transformation), training=True
    )
    rows, columns = ops.unstack(
        ops.cast(ops.round(grid), "int32"), 2, axis=1 if first else -1
    )
    return map_functions.gather(maps, rows * width + columns)


def perspective(layer, maps, transformation, place):
    """`keras.layers.RandomPerspective` has no fill mode but a constant."""
    _refuse(
        layer,
        place,
        "it adds pixels that have no label. Use RandomShear or RandomRotation; "
        "or, in a subclass, write `transform_segmentation_masks`, which gives "
        "them the label that your loss ignores",
    )


def paste(layer, maps, transformation, place):
    """`keras.layers.CutMix`: the rectangle of the images."""
    _check_resolution(layer, place)
    pasted = transformation["batch_masks"]
    if layer.data_format == "channels_first":
        pasted = ops.moveaxis(pasted, 1, -1)
    partners = ops.take(maps, transformation["permutation_order"], axis=0)
    return ops.where(pasted[..., :1], partners, maps)


def mix_up(layer, maps, transformation, place):
    """`MixUp`."""
    weight, partner = transformation["weight"], transformation["partner"]
    return map_functions.blend(maps, weight, partner)


def keras_mix_up(layer, maps, transformation, place):
    """`keras.layers.MixUp`."""
    weight = transformation["mix_weight"]
    partner = transformation["permutation_order"]
    return map_functions.blend(maps, weight, partner)


def by_method(layer, maps, transformation, place):
    """A layer of the user's, by its own method."""
    _check_resolution(layer, place)
    first = place.data_format == "channels_first"
    given = ops.moveaxis(maps, -1, 1) if first else maps
    moved = layer.transform_segmentation_masks(
        given, _transformations.copy(transformation), training=True
    )
    moved = ops.moveaxis(moved, 1, -1) if first else moved
    expected = (*place.after(layer).image_size, maps.shape[-1])
    if tuple(moved.shape)[1:] != expected:
        raise ValueError(
            "`transform_segmentation_masks` of the layer "
            f"{layer.name!r} ({type(layer).__name__}) must return masks of the "
            f"height and width of the images and as many channels, {expected} "
            f"behind the batch. Returned: {tuple(moved.shape)[1:]}."
        )
    if keras.backend.is_int_dtype(maps.dtype):
        moved = ops.round(moved)
    return ops.cast(moved, maps.dtype)


def _rules(**rules):
    """Return rules by the class of Keras, of those that this Keras has."""
    return {
        getattr(keras.layers, name): rule
        for name, rule in rules.items()
        if hasattr(keras.layers, name)
    }


_RULES = {
    InceptionCrop: inception_crop,
    MixUp: mix_up,
    **dict.fromkeys(_layer_kinds.IN_PLACE, keep),
    **_rules(
        CenterCrop=center_crop,
        CutMix=paste,
        MixUp=keras_mix_up,
        RandomCrop=random_crop,
        RandomFlip=flip,
        RandomPerspective=perspective,
        RandomRotation=affine,
        RandomShear=affine,
        RandomTranslation=affine,
        RandomZoom=affine,
        Resizing=resize,
    ),
}
