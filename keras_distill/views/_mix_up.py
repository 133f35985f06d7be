"""MixUp: every image blended with another one of its batch.

Three published variants differ in details. This one draws one weight per image
and one random permutation per batch; it does not fold the weight above 1/2 and
does not pair images by reversing or rolling the batch, which gives few pairs.
"""

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.views import _maps

# Each try of the Gamma sampler is accepted with a probability above 95 %.
_TRIES = 12


@keras.saving.register_keras_serializable(package="keras_distill")
class MixUp(keras.layers.Layer):
    """Blends each image with a random partner: `w * x_i + (1 - w) * x_j`.

    The weight `w ~ Beta(alpha, alpha)` is drawn per image, the partners are one
    random permutation of the batch. `alpha=1` is the uniform mix of function
    matching. Labels and masks given along are blended with the same weights.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization",
    https://arxiv.org/abs/1710.09412.

    Args:
        alpha: float above 0. Small values keep most images nearly pure.
        seed: int, or `None` for a random one.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        data: batch of images, or a dict with `"images"` and optionally
            `"labels"` and `"segmentation_masks"`.
        training: bool. Whether to mix; otherwise the data passes unchanged.

    Input shape:
        `(batch, ...)`: images in either data format, or any float features.
        Labels must be one-hot or probabilities: a class index can't be mixed.

    Output shape:
        That of the input; float.

    Raises:
        ValueError: if `alpha` is not above 0, or labels are integers.

    Example:

    ```python
    import numpy as np
    from keras_distill import MixUp

    data = {"images": np.random.rand(4, 8, 8, 1), "labels": np.eye(4)}
    mixed = MixUp(seed=0)(data, training=True)
    print(mixed["labels"])  # rows of two non-zero weights that sum to 1
    ```
    """

    mixes_labels = True

    def __init__(self, alpha=1.0, seed=None, **kwargs):
        # `call` casts; a policy of half precision must not do it before.
        super().__init__(autocast=False, **kwargs)
        self.alpha = _arguments.positive_float("alpha", alpha)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def get_random_transformation(self, images, training=True, seed=None):
        """Draw `{"weight": (batch,), "partner": (batch,)}`.

        Args:
            images: the batch to draw for; only its length is read.
            training: bool. Without it there is nothing to draw (`None`).
            seed: a `SeedGenerator` to draw with instead of the layer's own.
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

    def transform_images(self, images, transformation, training=True):
        """Blend the images as drawn."""
        images = ops.convert_to_tensor(images)
        if not training:
            return images
        return _blend(ops.cast(images, self.compute_dtype), transformation)

    def transform_labels(self, labels, transformation, training=True):
        """Blend labels (or any float values per image) as drawn.

        Raises:
            ValueError: if the labels are integers.
        """
        labels = ops.convert_to_tensor(labels)
        if not training:
            return labels
        return _blend_floats("labels", labels, transformation)

    def transform_segmentation_masks(
        self, masks, transformation, training=True
    ):
        """Blend masks `(batch, ...)` as drawn, pixel by pixel.

        Raises:
            ValueError: if the masks are integers.
        """
        masks = ops.convert_to_tensor(masks)
        if not training:
            return masks
        return _blend_floats("masks", masks, transformation)

    def call(self, data, training=True):
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

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "seed": self.seed}


def _blend(values, transformation):
    return _maps.blend(
        values, transformation["weight"], transformation["partner"]
    )


def _blend_floats(name, values, transformation):
    if not keras.backend.is_float_dtype(values.dtype):
        raise ValueError(
            f"MixUp can't blend class indices. Received {name} of dtype="
            f"{keras.backend.standardize_dtype(values.dtype)}, shape="
            f"{tuple(values.shape)}. Pass "
            f"`keras.ops.one_hot({name}, num_classes)`."
        )
    return _blend(values, transformation)


def _symmetric_beta(alpha, count, seed):
    """Draw `count` values of Beta(alpha, alpha), with ops that XLA compiles.

    Beta(1, 1) is uniform. Otherwise `a / (a + b)` of two Gamma variables, in
    logarithms: at small `alpha` both underflow and their ratio does not.
    """
    if alpha == 1.0:
        return keras.random.uniform((count,), seed=seed)
    log_gammas = _log_gamma_variables(alpha, count, seed)  # (2, count)
    return ops.sigmoid(log_gammas[0] - log_gammas[1])


def _log_gamma_variables(alpha, count, seed):
    """Draw the logarithm of Gamma(alpha) variables, shape `(2, count)`.

    Marsaglia and Tsang 2000, "A Simple Method for Generating Gamma Variables",
    for Gamma(alpha + 1), with all tries drawn at once and the first accepted
    one taken; then Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha).
    """
    d = alpha + 1.0 - 1.0 / 3.0
    c = 1.0 / (9.0 * d) ** 0.5
    normal = keras.random.normal((2, count, _TRIES), seed=seed)
    uniform = keras.random.uniform((3, 2, count, _TRIES), seed=seed)
    # `uniform` is in [0, 1): 1 - uniform has a logarithm.
    log_uniform = ops.log(1.0 - uniform)
    v = (1.0 + c * normal) ** 3
    log_v = ops.log(ops.maximum(v, 1e-30))
    bound = 0.5 * normal**2 + d - d * v + d * log_v
    accepted = ops.logical_and(v > 0.0, log_uniform[0] < bound)
    first = ops.one_hot(ops.argmax(accepted, axis=-1), _TRIES)
    log_gamma = ops.log(d) + ops.sum(first * log_v, axis=-1)
    return log_gamma + log_uniform[1, :, :, 0] / alpha
