"""Where in a chain of layers a map is: which images it belongs to, and how.

Shapes alone; nothing here touches a value.
"""

import dataclasses

from keras import tree

from keras_distill.views import _layer_kinds


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a map is, between two layers of a chain.

    Args:
        image_shape: static shape of the images that the next layer gets.
        data_format: of the chain.
        channels: the axis of the values' channels, or `None`.
        stride: how many pixels of the images a pixel of the map spans; `None`
            where a size is not known.
        shape: the shape that the values came with, for messages.
    """

    image_shape: tuple
    data_format: str
    channels: int | None
    stride: int | None
    shape: tuple

    @property
    def image_size(self):
        """Height and width of the images."""
        return _spatial(self.image_shape, _axis(self.data_format))

    def after(self, layer):
        """Return the place behind a layer."""
        shape = _layer_kinds.shape_after(layer, self.image_shape)
        if isinstance(shape, dict):
            # Two renderings: labels belong to the student's.
            shape = shape.get("student", self.image_shape)
        return dataclasses.replace(self, image_shape=tuple(shape))


def find_place(shape, layers, images):
    """Return the `Place` of a map in front of a chain.

    A map has the height and width of the images, and channels first, last or
    none; or it has these divided by one whole number, and the layout of the
    images.

    Args:
        shape: static shape of the map.
        layers: the layers of the chain.
        images: a structure of images; only static shapes are read.

    Raises:
        ValueError: if no image has a map of this shape.
    """
    data_format = _layer_kinds.data_format_of(layers)
    image_shapes = [tuple(image.shape) for image in tree.flatten(images)]
    own = _axis(data_format)
    axes = {3: [None], 4: [own, -1 if own == 1 else 1]}.get(len(shape), [])
    for axis in axes:
        for image_shape in image_shapes:
            size, image_size = _spatial(shape, axis), _spatial(image_shape, own)
            if all(a == b or None in (a, b) for a, b in zip(size, image_size)):
                known = None not in (*size, *image_size)
                stride = 1 if known else None
                return Place(image_shape, data_format, axis, stride, shape)
    for axis in axes[:1]:
        for image_shape in image_shapes:
            stride = _whole_stride(shape, axis, _spatial(image_shape, own))
            if stride is not None:
                return Place(image_shape, data_format, axis, stride, shape)
    raise ValueError(_no_map(shape, layers, image_shapes, data_format))


def check_rows(shape, layers, images):
    """Raise if values per sample look like maps that were made flat.

    Args:
        shape: static shape of the values, of rank 2 or less.
        layers: the layers of the chain.
        images: a structure of images; only static shapes are read.
    """
    moving = list(filter(_layer_kinds.moves_pixels, layers))
    if not moving or len(shape) < 2 or shape[1] in (None, 1):
        return
    axis = _axis(_layer_kinds.data_format_of(layers))
    for image in tree.flatten(images):
        height, width = _spatial(tuple(image.shape), axis)
        if None not in (height, width) and shape[1] == height * width:
            raise ValueError(
                f"Values of shape {shape} can't follow the layer "
                f"{moving[0].name!r} ({type(moving[0]).__name__}): they have "
                f"one value per pixel of the images ({height}, {width}). Give "
                "maps of (batch, height, width), as outputs and labels, or "
                "augment in the data pipeline. Instead of one-hot labels give "
                "class indices."
            )


def _axis(data_format):
    return -1 if data_format == "channels_last" else 1


def _spatial(shape, channels):
    return tuple(shape[2:4] if channels == 1 else shape[1:3])


def _whole_stride(shape, axis, image_size):
    size = _spatial(shape, axis)
    could_be_boxes = axis is None and shape[-1] == 4
    if could_be_boxes or None in (*size, *image_size) or 0 in size:
        return None
    strides = {divmod(whole, part) for whole, part in zip(image_size, size)}
    stride, rest = strides.pop()
    return stride if not strides and not rest else None


def _no_map(shape, layers, image_shapes, data_format):
    layer = next(filter(_layer_kinds.concerns_maps, layers))
    images = image_shapes[0] if len(image_shapes) == 1 else image_shapes
    return (
        f"Values of shape {shape} can't follow the layer {layer.name!r} "
        f"({type(layer).__name__}). They have neither one value or row per "
        "sample nor the height and width of the images, which have the shape "
        f"{images} ({data_format}). Augment boxes, points and sequences in the "
        "data pipeline, before the Distiller, or train with a loss that reads "
        "no labels. Maps at another resolution must divide height and width by "
        "one whole number; give them an axis of channels if the last axis is 4."
    )
