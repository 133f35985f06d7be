"""Pure functions on batches of images: checks and resampling."""

from typing import Any

import keras
from keras import ops

from keras_distill._typing import Tensor


def check_images(images: Tensor, data_format: str, layer: str) -> None:
    """Check that `images` is a batch of images in `data_format`.

    Args:
        images: a tensor; only its static shape is read.
        data_format: `"channels_last"` or `"channels_first"`.
        layer: the name of the layer, for the message.

    Raises:
        ValueError: if the rank is not 4, or if the images look like images in
            the other data format.
    """
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4:
        form = "(batch, height, width, channels)"
        if data_format == "channels_first":
            form = "(batch, channels, height, width)"
        raise ValueError(
            f"{layer} takes a batch of images of shape {form}. "
            f"Received: shape={shape}"
        )
    last, first = shape[3], shape[1]
    channels, other = (last, first)
    if data_format == "channels_first":
        channels, other = (first, last)
    if channels is not None and other in (1, 3) and channels > 4:
        raise ValueError(
            f"{layer} has data_format={data_format!r}, but the images look "
            f"like the other format. Received: shape={shape}. Pass "
            "`data_format` to the layer, or transpose the images."
        )


def image_size(images: Tensor, data_format: str) -> Any:
    """Return the static `(height, width)` of a batch of images."""
    shape = images.shape
    return shape[1:3] if data_format == "channels_last" else shape[2:4]


def resample(
    images: Tensor, boxes: Tensor, size: tuple[int, int], data_format: str
) -> Tensor:
    """Return one box of each image, resized with antialiasing.

    The triangle filter of bilinear interpolation is separable. It is widened by
    the scale if the box is larger than the result. So the whole batch is
    computed by two batched matrix products, which are fast on every backend,
    without a gather and without a loop over images.

    Args:
        images: float tensor `(batch, height, width, channels)`, or with the
            channels first.
        boxes: float tensor `(batch, 4)`: top, left, height and width of each
            box as fractions of the image.
        size: `(height, width)` of the result.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        A float tensor of the same layout.
    """
    height, width = image_size(images, data_format)
    top, left, box_height, box_width = ops.unstack(boxes, 4, axis=1)
    rows = _filters(top, box_height, height, size[0])  # (batch, out, height)
    columns = _filters(left, box_width, width, size[1])  # (batch, out, width)
    if data_format == "channels_first":
        images = ops.einsum("boh,bchw->bcow", rows, images)
        return ops.einsum("bpw,bcow->bcop", columns, images)
    # The first product returns the layout that the second product requires, so
    # that nothing is transposed between them.
    channels = images.shape[3]
    images = ops.reshape(images, (-1, height, width * channels))
    images = ops.matmul(
        ops.transpose(images, (0, 2, 1)), ops.transpose(rows, (0, 2, 1))
    )
    images = ops.reshape(images, (-1, width, channels * size[0]))
    images = ops.reshape(
        ops.matmul(columns, images), (-1, size[1], channels, size[0])
    )
    return ops.transpose(images, (0, 3, 1, 2))


def resize_axis(features: Tensor, axis: int, size: int) -> Tensor:
    """Return features with one axis resized to `size`, with the same filter."""
    length = features.shape[axis]
    if length == size:
        return features
    weights = _filters(ops.zeros(1), ops.ones(1), length, size)[0]
    weights = ops.cast(ops.transpose(weights), features.dtype)
    moved = ops.matmul(ops.moveaxis(features, axis, -1), weights)
    return ops.moveaxis(moved, -1, axis)


def _filters(start, length, num_pixels, num_samples):
    """Return the weight of each pixel in each sample, rows summing to 1."""
    scale = length * (num_pixels / num_samples)  # (batch,) pixels per sample
    centers = sample_centers(start, length, num_pixels, num_samples)
    pixels = ops.arange(num_pixels, dtype="float32") + 0.5
    support = ops.maximum(scale, 1.0)[:, None, None]
    distances = ops.abs(centers[:, :, None] - pixels) / support
    weights = ops.maximum(1.0 - distances, 0.0)
    # Near the border, a part of the filter is outside: normalize again.
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def sample_centers(
    start: Tensor, length: Tensor, num_pixels: int, num_samples: int
) -> Tensor:
    """Return the centres of the samples along an axis, in pixels.

    Args:
        start: float tensor `(batch,)`, the start of the box as a fraction of
            the axis.
        length: float tensor `(batch,)`, the length of the box as a fraction of
            the axis.
        num_pixels: int, the size of the axis.
        num_samples: int, the number of samples in the box.

    Returns:
        A float tensor `(batch, num_samples)`.
    """
    scale = length * (num_pixels / num_samples)
    samples = ops.arange(num_samples, dtype="float32") + 0.5
    return (start * num_pixels)[:, None] + scale[:, None] * samples


def standardize_data_format(data_format: str | None) -> str:
    """Return `data_format`, or Keras's default for `None`.

    Raises:
        ValueError: if it is not a data format.
    """
    if data_format is None:
        return keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            "`data_format` must be 'channels_last', 'channels_first' or None. "
            f"Received: data_format={data_format!r}"
        )
    return data_format
