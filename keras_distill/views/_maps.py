"""Pure functions that transform maps: masks, labels and weights per pixel.

Maps have the shape `(batch, height, width, channels)`. Except in `blend`,
nothing is interpolated: each value of the result is a value of the map, in the
same dtype.
"""

from typing import Any

from keras import ops

from keras_distill._typing import Tensor
from keras_distill.views import _images as image_functions


def gather(maps: Tensor, index: Tensor) -> Tensor:
    """Return the pixels at `index`, separately for each image.

    Args:
        maps: tensor `(batch, height, width, channels)`, of any dtype.
        index: int tensor `(batch, rows, columns)` of `row * width + column`.

    Returns:
        A tensor `(batch, rows, columns, channels)`.
    """
    height, width = ops.shape(maps)[1:3]
    pixels = ops.reshape(maps, (-1, maps.shape[3]))
    first = ops.arange(ops.shape(maps)[0], dtype="int32") * (height * width)
    return ops.take(pixels, index + first[:, None, None], axis=0)


def render_boxes(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return one box of each map, resized by nearest neighbour.

    Args:
        maps: tensor `(batch, height, width, channels)`.
        boxes: float tensor `(batch, 4)`: top, left, height and width of each
            box as fractions of the map.
        size: `(height, width)` of the result.
    """
    height, width = maps.shape[1:3]
    top, left, box_height, box_width = ops.unstack(boxes, 4, axis=1)
    rows = _pixels(top, box_height, height, size[0])
    columns = _pixels(left, box_width, width, size[1])
    return gather(maps, rows[:, :, None] * width + columns[:, None, :])


def _pixels(start, length, num_pixels, num_samples):
    """Return the pixel at the centre of each sample, `(batch, samples)`."""
    centers = image_functions.sample_centers(
        start, length, num_pixels, num_samples
    )
    pixels = ops.cast(ops.floor(centers), "int32")
    return ops.clip(pixels, 0, num_pixels - 1)


def render_box(
    maps: Tensor,
    box: tuple[Any, Any, Any, Any],
    size: tuple[int, ...],
    stride: int,
) -> Tensor:
    """Return the same box of every map, resized in integer arithmetic.

    Args:
        maps: tensor `(batch, height, width, channels)`.
        box: top, left, height and width in pixels of the images; top and left
            may be tensors.
        size: `(height, width)` of the result.
        stride: the number of pixels of the images per pixel of the maps.
    """
    top, left, height, width = box

    def pixels(start, length, num_samples):
        centers = 2 * ops.arange(num_samples, dtype="int32") + 1
        centers = 2 * num_samples * start + length * centers
        return ops.floor_divide(centers, 2 * num_samples * stride)

    maps = ops.take(maps, pixels(top, height, size[0]), axis=1)
    return ops.take(maps, pixels(left, width, size[1]), axis=2)


def blend(values: Tensor, weight: Tensor, partner: Tensor) -> Tensor:
    """Return `weight * values + (1 - weight) * values[partner]`.

    Args:
        values: float tensor `(batch, ...)`.
        weight: float tensor `(batch,)`.
        partner: int tensor `(batch,)`.
    """
    weight = ops.cast(weight, values.dtype)
    weight = ops.reshape(weight, (-1,) + (1,) * (len(values.shape) - 1))
    return weight * values + (1 - weight) * ops.take(values, partner, axis=0)


def one_hot(indices: Tensor, num_classes: int) -> Tensor:
    """Return one-hot rows. An index out of range gives a row of zeros.

    Args:
        indices: tensor of any shape and dtype.
        num_classes: int.
    """
    indices = ops.cast(indices, "int32")[..., None]
    classes = ops.arange(num_classes, dtype="int32")
    return ops.cast(ops.equal(indices, classes), "float32")
