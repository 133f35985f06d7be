"""InceptionCrop: a random box of each image, resampled to one size.

Left out: a choice of interpolation. Antialiased bilinear is what the published
recipes train with, and one filter keeps the layer two matrix products.
"""

import math

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.views import _images as image_functions
from keras_distill.views import _maps

# Boxes that stick out of the image are drawn again, as in the original. A
# compiled step can't loop until one fits, so all tries are drawn at once.
_TRIES = 10


@keras.saving.register_keras_serializable(package="keras_distill")
class InceptionCrop(keras.layers.Layer):
    """Crops a random box of random area and shape, one per image, and resizes.

    The area is uniform in `area_range` (as a share of the image), the aspect
    ratio log-uniform in `aspect_ratio_range`, the position uniform. A box that
    does not fit is drawn again, up to 10 times; after that the largest central
    box of an allowed aspect ratio is taken. The box is resampled with
    antialiased bilinear interpolation; pixel values keep their range.

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions",
    https://arxiv.org/abs/1409.4842; the default smallest area of 5 % is that
    of function matching (Beyer et al. 2022).

    Args:
        height, width: size of the result in pixels.
        area_range: smallest and largest share of the image's area, in (0, 1].
        aspect_ratio_range: smallest and largest width / height.
        teacher_size: `None`, an int or `(height, width)`. If given, the same
            box is rendered a second time at this size, and the result is the
            dict `{"student": ..., "teacher": ...}`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        seed: int, or `None` for a random one.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        images: batch of images, integer or float, of any value range.
        training: bool. Whether to crop; otherwise images pass unchanged.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`.

    Output shape:
        The same with the new height and width; float.

    Raises:
        ValueError: for sizes or ranges out of bounds, a wrong rank, or images
            in the other data format.

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
        height,
        width,
        area_range=(0.05, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        teacher_size=None,
        data_format=None,
        seed=None,
        **kwargs,
    ):
        # Pixels reach `call` as they are: cast to a half-precision policy on
        # the way in, they would be rounded before they are resampled.
        super().__init__(autocast=False, **kwargs)
        self.height = _arguments.positive_int("height", height)
        self.width = _arguments.positive_int("width", width)
        self.area_range = _arguments.positive_range("area_range", area_range, 1)
        self.aspect_ratio_range = _arguments.positive_range(
            "aspect_ratio_range", aspect_ratio_range
        )
        self.teacher_size = teacher_size
        if teacher_size is not None:
            if not isinstance(teacher_size, (tuple, list)):
                teacher_size = (teacher_size, teacher_size)
            if len(teacher_size) != 2:
                raise ValueError(
                    "`teacher_size` must be an int or (height, width). "
                    f"Received: teacher_size={teacher_size!r}"
                )
            self.teacher_size = tuple(
                _arguments.positive_int("teacher_size", v) for v in teacher_size
            )
        self.data_format = image_functions.standardize_data_format(data_format)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def get_random_transformation(self, images, training=True, seed=None):
        """Draw the boxes: `{"boxes": (batch, 4)}`, as fractions of the image.

        Args:
            images: the batch to draw for; only its shape is read.
            training: bool. Without it there is nothing to draw (`None`).
            seed: a `SeedGenerator` to draw with instead of the layer's own.
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
        # Width / height in pixels, turned into one in fractions of the image.
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

    def transform_images(self, images, transformation, training=True):
        """Render the drawn boxes.

        Args:
            images: batch of images.
            transformation: what `get_random_transformation` returned.
            training: bool. Without it the images pass unchanged.
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
        self, masks, transformation, training=True
    ):
        """Take the drawn boxes out of masks, or weights per pixel.

        Nearest neighbour: each pixel of the result is the mask's pixel at its
        centre, in the mask's dtype. With `teacher_size` the result has the
        student's size.

        Args:
            masks: tensor `(batch, rows, columns)`, or with an axis of channels
                as the images have it, of any dtype and resolution.
            transformation: what `get_random_transformation` returned.
            training: bool. Without it the masks pass unchanged.

        Returns:
            A tensor `(batch, height, width)`, or with the axis of channels.
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

    def call(self, images, training=True):
        transformation = self.get_random_transformation(images, training)
        return self.transform_images(images, transformation, training)

    def compute_output_shape(self, input_shape):
        def resized(size):
            if self.data_format == "channels_last":
                return (input_shape[0], *size, input_shape[3])
            return (*input_shape[:2], *size)

        shape = resized((self.height, self.width))
        if self.teacher_size is None:
            return shape
        return {"student": shape, "teacher": resized(self.teacher_size)}

    def get_config(self):
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
