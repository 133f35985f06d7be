"""InceptionCrop: a random box of each image, resized to one size.

There is no choice of interpolation. The published recipes use antialiased
bilinear interpolation, and with one filter the layer is two matrix products.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.views import _images as image_functions
from keras_distill.views import _maps

# A box that is not inside the image is drawn again, as in the original code. A
# compiled step cannot loop until a box fits, so all tries are drawn at once.
_TRIES = 10


@keras.saving.register_keras_serializable(package="keras_distill")
class InceptionCrop(keras.layers.Layer):
    """Crops a box of random area and aspect ratio from each image; resizes it.

    The area is uniform in `area_range`, the aspect ratio is log-uniform in
    `aspect_ratio_range`, and the position is uniform. A box that does not fit
    is drawn again, at most 10 times. If no box fits, the largest central box of
    an allowed aspect ratio is used. The box is resized with antialiased
    bilinear interpolation. Pixel values keep their range.

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions",
    https://arxiv.org/abs/1409.4842. The default minimum area of 5 % is that of
    function matching (Beyer et al. 2022, https://arxiv.org/abs/2106.05237).

    Args:
        height: int, height of the result in pixels.
        width: int, width of the result in pixels.
        area_range: two floats in (0, 1], the minimum and maximum area of the
            box as a fraction of the image's area.
        aspect_ratio_range: two floats above 0, the minimum and maximum of
            width / height.
        teacher_size: `None`, an int or `(height, width)`. If given, the same
            box is also resized to this size, and the result is the dict
            `{"student": ..., "teacher": ...}`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        seed: int, or `None` for a random one.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        images: batch of images, integer or float, of any value range.
        training: bool. If `False`, the images are returned unchanged.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`.

    Output shape:
        The input shape with the new height and width; float.

    Raises:
        ValueError: if a size or range is out of bounds, if the images are not
            of rank 4, or if they are in the other data format.

    Example:

    ```python
    import numpy as np
    from keras_distill import InceptionCrop

    images = np.random.randint(0, 256, size=(8, 48, 64, 3), dtype="uint8")
    print(InceptionCrop(32, 32)(images, training=True).shape)  # (8, 32, 32, 3)
    ```
    """

    def __init__(
        self,
        height: int,
        width: int,
        area_range: tuple[float, float] = (0.05, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        teacher_size: int | tuple[int, int] | None = None,
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Without autocast: with a half-precision policy, the pixels would be
        # rounded before they are resized.
        super().__init__(autocast=False, **kwargs)
        self.height = _arguments.positive_int("height", height)
        self.width = _arguments.positive_int("width", width)
        self.area_range = _arguments.positive_range("area_range", area_range, 1)
        self.aspect_ratio_range = _arguments.positive_range(
            "aspect_ratio_range", aspect_ratio_range
        )
        self.teacher_size = _size_or_none("teacher_size", teacher_size)
        self.data_format = image_functions.standardize_data_format(data_format)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def get_random_transformation(
        self,
        images: Tensor,
        training: bool = True,
        seed: keras.random.SeedGenerator | None = None,
    ) -> dict[str, Tensor] | None:
        """Draw one box per image.

        Args:
            images: batch of images; only its shape is read.
            training: bool. If `False`, nothing is drawn.
            seed: a `SeedGenerator` to use instead of the layer's own.

        Returns:
            `{"boxes": boxes}` with a float tensor `(batch, 4)`: top, left,
            height and width as fractions of the image. `None` without
            `training`.
        """
        if not training:
            return None
        image_functions.check_images(images, self.data_format, self.name)
        seed = self.seed_generator if seed is None else seed
        height, width = image_functions.image_size(images, self.data_format)
        batch = ops.shape(images)[0]
        uniform = keras.random.uniform((batch, 4, _TRIES), seed=seed)

        low, high = self.area_range
        area = low + (high - low) * uniform[:, 0]  # (batch, tries)
        low, high = (math.log(v) for v in self.aspect_ratio_range)
        # Width / height in pixels, converted to fractions of the image.
        aspect = ops.exp(low + (high - low) * uniform[:, 1]) * (height / width)
        box_height = ops.sqrt(area / aspect)
        box_width = ops.sqrt(area * aspect)
        fits = ops.logical_and(box_height <= 1.0, box_width <= 1.0)

        chosen = ops.one_hot(ops.argmax(fits, axis=1), _TRIES)
        any_fits = ops.any(fits, axis=1)
        fallback_height, fallback_width = self._largest_box(height, width)

        def choose(candidates, fallback):
            value = ops.sum(ops.where(chosen > 0, candidates, 0.0), axis=1)
            return ops.where(any_fits, value, fallback)

        box_height = choose(box_height, fallback_height)
        box_width = choose(box_width, fallback_width)
        top = choose(uniform[:, 2], 0.5) * (1.0 - box_height)
        left = choose(uniform[:, 3], 0.5) * (1.0 - box_width)
        boxes = ops.stack([top, left, box_height, box_width], axis=1)
        return {"boxes": boxes}

    def _largest_box(self, height, width):
        """Return the largest box of an allowed aspect ratio, as fractions."""
        low, high = self.aspect_ratio_range
        aspect = min(max(width / height, low), high) * height / width
        return min(1.0, 1.0 / aspect), min(1.0, aspect)

    def transform_images(
        self,
        images: Tensor,
        transformation: Any,
        training: bool = True,
    ) -> Tensors:
        """Crop the drawn boxes and resize them.

        Args:
            images: batch of images.
            transformation: the result of `get_random_transformation`.
            training: bool. If `False`, the images are returned unchanged.

        Returns:
            A batch of images, or a dict of two batches with `teacher_size`.
        """
        images = ops.convert_to_tensor(images)
        image_functions.check_images(images, self.data_format, self.name)
        if not training:
            return images
        images = ops.cast(images, "float32")
        sizes = {"student": (self.height, self.width)}
        if self.teacher_size is not None:
            sizes["teacher"] = self.teacher_size
        views = {
            model: ops.cast(
                image_functions.resample(
                    images, transformation["boxes"], size, self.data_format
                ),
                self.compute_dtype,
            )
            for model, size in sizes.items()
        }
        return views if self.teacher_size is not None else views["student"]

    def transform_segmentation_masks(
        self,
        masks: Tensor,
        transformation: Any,
        training: bool = True,
    ) -> Tensor:
        """Crop the drawn boxes from masks, or from weights per pixel.

        The interpolation is nearest neighbour, in the dtype of the masks. With
        `teacher_size`, the result has the student's size.

        Args:
            masks: tensor `(batch, rows, columns)`, or with a channel axis in
                the data format of the images, of any dtype and resolution.
            transformation: the result of `get_random_transformation`.
            training: bool. If `False`, the masks are returned unchanged.

        Returns:
            A tensor `(batch, height, width)`, or with the channel axis.
        """
        masks = ops.convert_to_tensor(masks)
        if not training:
            return masks
        size, boxes = (self.height, self.width), transformation["boxes"]
        if len(masks.shape) == 3:
            return _maps.render_boxes(masks[..., None], boxes, size)[..., 0]
        image_functions.check_images(masks, self.data_format, self.name)
        if self.data_format == "channels_last":
            return _maps.render_boxes(masks, boxes, size)
        masks = ops.moveaxis(masks, 1, -1)
        return ops.moveaxis(_maps.render_boxes(masks, boxes, size), -1, 1)

    def call(self, images: Tensor, training: bool = True) -> Tensors:
        transformation = self.get_random_transformation(images, training)
        return self.transform_images(images, transformation, training)

    def compute_output_shape(
        self, input_shape: Sequence[int | None]
    ) -> tuple[int | None, ...] | dict[str, tuple[int | None, ...]]:
        def resized(size):
            if self.data_format == "channels_last":
                return (input_shape[0], *size, input_shape[3])
            return (*input_shape[:2], *size)

        shape = resized((self.height, self.width))
        if self.teacher_size is None:
            return shape
        return {"student": shape, "teacher": resized(self.teacher_size)}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "height": self.height,
            "width": self.width,
            "area_range": self.area_range,
            "aspect_ratio_range": self.aspect_ratio_range,
            "teacher_size": self.teacher_size,
            "data_format": self.data_format,
            "seed": self.seed,
        }


def _size_or_none(name, size):
    if size is None:
        return None
    if not isinstance(size, (tuple, list)):
        size = (size, size)
    if len(size) != 2:
        raise ValueError(
            f"`{name}` must be an int or (height, width). "
            f"Received: {name}={size!r}"
        )
    return tuple(_arguments.positive_int(name, length) for length in size)
