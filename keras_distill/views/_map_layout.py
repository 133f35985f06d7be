"""The layout of a map: how its shape relates to the shape of the images.

A map is a mask, or weights or labels per pixel. Only static shapes are read.
"""

import dataclasses
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from keras_distill._typing import Tensors
from keras_distill.views import _layer_kinds


@dataclasses.dataclass(frozen=True)
class MapLayout:
    """The layout of a map between two layers.

    Args:
        image_shape: static shape of the images before the next layer.
        data_format: data format of the images.
        channel_axis: the axis of the map's channels, or `None`.
        stride: the number of pixels of the images per pixel of the map, along
            each axis; `None` if a size is unknown.
        map_shape: the shape of the map before the first layer, for messages.
    """

    image_shape: tuple[int | None, ...]
    data_format: str
    channel_axis: int | None
    stride: int | None
    map_shape: tuple[int | None, ...]

    @property
    def image_size(self) -> tuple[Any, ...]:
        """Height and width of the images."""
        return _spatial(self.image_shape, _channel_axis(self.data_format))

    def after(self, layer: keras.layers.Layer) -> "MapLayout":
        """Return the layout after a layer."""
        shape = _layer_kinds.shape_after(layer, self.image_shape)
        if isinstance(shape, dict):
            # Two sizes: the labels have the student's.
            shape = shape.get("student", self.image_shape)
        return dataclasses.replace(self, image_shape=tuple(shape))


def find_layout(
    shape: Sequence[int | None],
    layers: Sequence[keras.layers.Layer],
    images: Tensors,
) -> MapLayout:
    """Return the layout of a map before the first layer.

    A map has the height and width of the images, and its channels are first,
    last or missing. Or its height and width are those of the images divided by
    one whole number, in the data format of the images.

    Args:
        shape: static shape of the map.
        layers: list of layers.
        images: a structure of images.

    Raises:
        ValueError: if the shape does not match any of the images.
    """
    shape = tuple(shape)
    data_format = _layer_kinds.data_format_of(layers)
    image_shapes = [tuple(image.shape) for image in tree.flatten(images)]
    image_axis = _channel_axis(data_format)
    axes: list[int | None] = []
    if len(shape) == 3:
        axes = [None]
    elif len(shape) == 4:
        axes = [image_axis, -1 if image_axis == 1 else 1]
    for axis in axes:
        for image_shape in image_shapes:
            size = _spatial(shape, axis)
            image_size = _spatial(image_shape, image_axis)
            if all(a == b or None in (a, b) for a, b in zip(size, image_size)):
                known = None not in (*size, *image_size)
                stride = 1 if known else None
                return MapLayout(image_shape, data_format, axis, stride, shape)
    for axis in axes[:1]:
        for image_shape in image_shapes:
            image_size = _spatial(image_shape, image_axis)
            stride = _whole_stride(shape, axis, image_size)
            if stride is not None:
                return MapLayout(image_shape, data_format, axis, stride, shape)
    raise ValueError(_no_layout(shape, layers, image_shapes, data_format))


def check_not_flattened(
    shape: Sequence[int | None],
    layers: Iterable[keras.layers.Layer],
    images: Tensors,
) -> None:
    """Check that values per sample are not flattened maps.

    Args:
        shape: static shape of the values, of rank 2 or less.
        layers: list of layers.
        images: a structure of images.

    Raises:
        ValueError: if the values have the size `height * width`, and a layer
            moves pixels.
    """
    layers = list(layers)
    moving = list(filter(_layer_kinds.moves_pixels, layers))
    if not moving or len(shape) < 2 or shape[1] in (None, 1):
        return
    axis = _channel_axis(_layer_kinds.data_format_of(layers))
    for image in tree.flatten(images):
        height, width = _spatial(tuple(image.shape), axis)
        if None not in (height, width) and shape[1] == height * width:
            raise ValueError(
                f"Values of shape {tuple(shape)} cannot follow the layer "
                f"{moving[0].name!r} ({type(moving[0]).__name__}): they have "
                f"one value per pixel of the images ({height}, {width}). Use "
                "outputs and labels of shape (batch, height, width), or "
                "augment in the data pipeline. Pass class indices instead of "
                "one-hot labels."
            )


def _channel_axis(data_format):
    return -1 if data_format == "channels_last" else 1


def _spatial(shape, channel_axis):
    return tuple(shape[2:4] if channel_axis == 1 else shape[1:3])


def _whole_stride(shape, axis, image_size):
    size = _spatial(shape, axis)
    could_be_boxes = axis is None and shape[-1] == 4
    if could_be_boxes or None in (*size, *image_size) or 0 in size:
        return None
    strides = {divmod(whole, part) for whole, part in zip(image_size, size)}
    stride, rest = strides.pop()
    return stride if not strides and not rest else None


def _no_layout(shape, layers, image_shapes, data_format):
    layer = next(filter(_layer_kinds.changes_maps, layers))
    images = image_shapes[0] if len(image_shapes) == 1 else image_shapes
    return (
        f"Values of shape {shape} cannot follow the layer {layer.name!r} "
        f"({type(layer).__name__}). They must have one value or row per "
        "sample, or the height and width of the images. Received: images of "
        f"shape {images} ({data_format}). Augment boxes, points and sequences "
        "in the data pipeline, before the Distiller, or use a loss that reads "
        "no labels. The height and width of smaller maps must be those of the "
        "images divided by one whole number. If the last axis of a map has "
        "size 4, add a channel axis."
    )
