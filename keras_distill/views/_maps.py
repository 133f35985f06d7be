"""How maps move: labels, masks and weights per pixel.

Pure functions of `(batch, height, width, channels)`. Nothing is interpolated:
each value of a moved map is one of the map's own, in the map's dtype.
"""

from keras import ops

from keras_distill.views import _images as image_functions


def gather(maps, index):
    """Take the pixels of `index`, each from its own image.

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


def render_boxes(maps, boxes, size):
    """Render one box of each map at `size`: the pixel at each centre.

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


def render_box(maps, box, size, stride):
    """Render the same box of every map at `size`, in whole numbers.

    Args:
        maps: tensor `(batch, height, width, channels)`.
        box: top, left, height and width in pixels of the images; top and left
            may be tensors.
        size: `(height, width)` of the result.
        stride: how many pixels of the images a pixel of the maps spans.
    """
    top, left, height, width = box

    def pixels(start, length, num_samples):
        centers = 2 * ops.arange(num_samples, dtype="int32") + 1
        centers = 2 * num_samples * start + length * centers
        return ops.floor_divide(centers, 2 * num_samples * stride)

    maps = ops.take(maps, pixels(top, height, size[0]), axis=1)
    return ops.take(maps, pixels(left, width, size[1]), axis=2)


def blend(values, weight, partner):
    """Return `weight * values + (1 - weight) * values[partner]`.

    Args:
        values: float tensor `(batch, ...)`.
        weight: float tensor `(batch,)`.
        partner: int tensor `(batch,)`.
    """
    weight = ops.cast(weight, values.dtype)
    weight = ops.reshape(weight, (-1,) + (1,) * (len(values.shape) - 1))
    return weight * values + (1 - weight) * ops.take(values, partner, axis=0)


def one_hot(indices, num_classes):
    """Return one-hot rows; an index out of range gives a row of zeros.

    Args:
        indices: tensor of any shape and dtype.
        num_classes: int.
    """
    indices = ops.cast(indices, "int32")[..., None]
    classes = ops.arange(num_classes, dtype="int32")
    return ops.cast(ops.equal(indices, classes), "float32")
