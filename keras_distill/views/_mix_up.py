"""MixUp: each image is blended with another image of its batch.

Published variants differ in details. This one draws one weight per image and
one random permutation per batch. It does not change weights below 1/2 to
`1 - w`. It does not pair images by reversing or rolling the batch, which gives
few different pairs.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.views import _maps


@keras.saving.register_keras_serializable(package="keras_distill")
class MixUp(keras.layers.Layer):
    """Blends each image with a random partner: `w * x_i + (1 - w) * x_j`.

    One weight `w ~ Beta(alpha, alpha)` is drawn per image. The partners are a
    random permutation of the batch. With `alpha=1`, the weights are uniform, as
    in function matching. Labels and masks are blended with the same weights.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization",
    https://arxiv.org/abs/1710.09412.

    Args:
        alpha: float above 0. With small values, most images are blended only a
            little.
        seed: int, or `None` for a random one.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        data: batch of images, or a dict with `"images"` and optionally
            `"labels"` and `"segmentation_masks"`.
        training: bool. If `False`, the data is returned unchanged.

    Input shape:
        `(batch, ...)`: images in either data format, or any float features.
        Labels must be one-hot or probabilities: class indices cannot be
        blended.

    Output shape:
        The input shape; float.

    Raises:
        ValueError: if `alpha` is not above 0, or if labels are integers.

    Example:

    ```python
    import numpy as np
    from keras_distill import MixUp

    data = {"images": np.random.rand(4, 8, 8, 1), "labels": np.eye(4)}
    mixed = MixUp(seed=0)(data, training=True)
    print(mixed["labels"])  # rows of two non-zero weights that sum to 1
    ```
    """

    mixes_labels: bool = True

    def __init__(
        self, alpha: float = 1.0, seed: int | None = None, **kwargs: Any
    ) -> None:
        # Without autocast: `call` casts, and a half-precision policy would
        # round before.
        super().__init__(autocast=False, **kwargs)
        self.alpha = _arguments.positive_float("alpha", alpha)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def get_random_transformation(
        self,
        images: Tensor,
        training: bool = True,
        seed: keras.random.SeedGenerator | None = None,
    ) -> dict[str, Tensor] | None:
        """Draw one weight and one partner per image.

        Args:
            images: batch of images; only its batch size is read.
            training: bool. If `False`, nothing is drawn.
            seed: a `SeedGenerator` to use instead of the layer's own.

        Returns:
            A dict with `"weight"`, float `(batch,)`, and `"partner"`, the
            indices of the partners, int `(batch,)`. `None` without `training`.
        """
        if not training:
            return None
        seed = self.seed_generator if seed is None else seed
        batch = ops.shape(images)[0]
        order = keras.random.uniform((batch,), seed=seed)
        return {
            "weight": _symmetric_beta(self.alpha, batch, seed),
            "partner": ops.argsort(order, axis=0),
        }

    def transform_images(
        self, images: Tensor, transformation: Any, training: bool = True
    ) -> Tensor:
        """Blend images with the drawn weights and partners.

        Args:
            images: batch of images.
            transformation: the result of `get_random_transformation`.
            training: bool. If `False`, the images are returned unchanged.
        """
        images = ops.convert_to_tensor(images)
        if not training:
            return images
        return _blend(ops.cast(images, self.compute_dtype), transformation)

    def transform_labels(
        self, labels: Tensor, transformation: Any, training: bool = True
    ) -> Tensor:
        """Blend labels, or other values per image, as the images.

        Args:
            labels: float tensor `(batch, ...)`.
            transformation: the result of `get_random_transformation`.
            training: bool. If `False`, the labels are returned unchanged.

        Raises:
            ValueError: if the labels are integers.
        """
        labels = ops.convert_to_tensor(labels)
        if not training:
            return labels
        return _blend_floats("labels", labels, transformation)

    def transform_segmentation_masks(
        self, masks: Tensor, transformation: Any, training: bool = True
    ) -> Tensor:
        """Blend masks as the images, pixel by pixel.

        Args:
            masks: float tensor `(batch, ...)`.
            transformation: the result of `get_random_transformation`.
            training: bool. If `False`, the masks are returned unchanged.

        Raises:
            ValueError: if the masks are integers.
        """
        masks = ops.convert_to_tensor(masks)
        if not training:
            return masks
        return _blend_floats("masks", masks, transformation)

    def call(self, data: Tensors, training: bool = True) -> Tensors:
        images = data["images"] if isinstance(data, dict) else data
        transformation = self.get_random_transformation(images, training)
        images = self.transform_images(images, transformation, training)
        if not isinstance(data, dict):
            return images
        mixed = {**data, "images": images}
        for key, transform in (
            ("labels", self.transform_labels),
            ("segmentation_masks", self.transform_segmentation_masks),
        ):
            if key in data:
                mixed[key] = transform(data[key], transformation, training)
        return mixed

    def compute_output_shape(
        self, input_shape: Sequence[int | None]
    ) -> Sequence[int | None]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "seed": self.seed}


def _blend(values, transformation):
    return _maps.blend(
        values, transformation["weight"], transformation["partner"]
    )


def _blend_floats(name, values, transformation):
    if not keras.backend.is_float_dtype(values.dtype):
        raise ValueError(
            f"MixUp cannot blend class indices. Received: {name} of dtype="
            f"{keras.backend.standardize_dtype(values.dtype)}, shape="
            f"{tuple(values.shape)}. Pass "
            f"`keras.ops.one_hot({name}, num_classes)`."
        )
    return _blend(values, transformation)


def _symmetric_beta(alpha, count, seed):
    """Draw `count` values of Beta(alpha, alpha), with ops that XLA compiles.

    The method of Devroye 1996, "Random Variate Generation in One Line of Code":
    with two uniform variables, `w = u^(1 / alpha)` and `c = cos(2 pi v)`, it is

        (1 + c sqrt((1 - w) / r)) / 2,   r = w + (1 - w) c^2

    The smaller of the value and 1 minus the value is computed in a form that
    does not cancel.
    """
    if alpha == 1.0:
        return keras.random.uniform((count,), seed=seed)
    uniform = keras.random.uniform((2, count), seed=seed)
    # `uniform` is in [0, 1), so the logarithm of 1 - uniform is finite.
    log_w = ops.log(1.0 - uniform[0]) / alpha
    w, rest = ops.exp(log_w), -ops.expm1(log_w)
    cosine = ops.cos(2.0 * math.pi * uniform[1])
    r = ops.maximum(w + rest * cosine**2, 1e-30)  # Both may underflow.
    smaller = 0.5 * (w / r) / (1.0 + ops.abs(cosine) * ops.sqrt(rest / r))
    return ops.where(cosine < 0.0, smaller, 1.0 - smaller)
