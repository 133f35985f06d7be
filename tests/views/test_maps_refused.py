"""Values that cannot follow a view are refused, with the layer and the shape.

The solutions that the messages suggest are tested too.
"""

import keras
import numpy as np
import pytest
from common import to_numpy
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp

pytestmark = pytest.mark.any_backend

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 16, 16, 3))
IMAGES = IMAGES.astype("float32")
MASK = np.random.default_rng(1).integers(0, 256, (3, 16, 16)).astype("int32")


def follow(layer, values, images=IMAGES, **kwargs):
    augment = ConsistentAugment(layer, seed=1)
    return augment.follow(values, augment.draw(images)[1], images, **kwargs)


class Roll(keras.layers.Layer):
    """Moves pixels, and has no method for masks."""

    def get_random_transformation(self, images, training=True, seed=None):
        return {"shift": keras.ops.convert_to_tensor(3)}

    def transform_images(self, images, transformation, training=True):
        return keras.ops.roll(images, 3, axis=1)


class RollMasks(Roll):
    def transform_segmentation_masks(
        self, masks, transformation, training=True
    ):
        return keras.ops.cast(keras.ops.roll(masks, 3, axis=1), "float32")


class NoisyFlip(layers.RandomFlip):
    """Moves pixels in a way that Keras's method for masks does not."""

    def transform_images(self, images, transformation, training=True):
        return keras.ops.roll(images, 3, axis=1)


class MyCrop(InceptionCrop):
    def transform_images(self, images, transformation, training=True):
        return images[:, :8, :8]


MOVING = [
    lambda: layers.RandomFlip(),
    lambda: layers.RandomRotation(0.1),
    lambda: InceptionCrop(8, 8),
    lambda: RollMasks(),
    lambda: MixUp(),
    lambda: layers.MixUp(),
    lambda: layers.CutMix(),
]
NO_MAPS = [
    (3, 5, 4),
    (3, 4, 4),
    (3, 10, 10),
    (3, 8, 16),
    (3, 4, 8, 1),
    (3, 32, 32),
]


@pytest.mark.parametrize("make", MOVING)
def test_values_that_are_not_maps(make):
    layer = make()
    for shape in [*NO_MAPS, (3, 16, 16, 1, 1)]:
        with pytest.raises(ValueError) as error:
            follow(layer, np.zeros(shape, "float32"))
        message = str(error.value)
        assert f"Values of shape {shape} cannot follow" in message
        assert f"{layer.name!r} ({type(layer).__name__})" in message
        assert "(3, 16, 16, 3)" in message and "data pipeline" in message


def test_flattened_maps():
    """Flattened maps look like one row per sample."""
    flat = MASK.reshape(3, 256)
    with pytest.raises(ValueError, match=r"one value per pixel.*\(16, 16\)"):
        follow([layers.RandomBrightness(0.2), layers.RandomFlip()], flat)
    assert follow(layers.RandomBrightness(0.2), flat) is flat
    one_hot = np.eye(3, 255)
    assert follow(layers.RandomFlip(), one_hot) is one_hot


def test_layers_that_do_not_move_pixels_change_nothing():
    chain = [layers.RandomBrightness(0.2), layers.RandomErasing()]
    for shape in NO_MAPS:
        values = np.zeros(shape)
        assert follow(chain, values) is values


@pytest.mark.parametrize(
    "layer",
    [
        layers.RandomRotation(0.1, fill_mode="constant"),
        layers.RandomShear(0.1, fill_mode="constant"),
        layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
        layers.RandomZoom(0.1, fill_mode="constant"),
        layers.RandomPerspective(),
        layers.Resizing(8, 24, pad_to_aspect_ratio=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_pixels_without_a_label(layer):
    """Such pixels would become class 0, with full weight."""
    with pytest.raises(ValueError, match="adds pixels that have no label"):
        follow(layer, MASK)
    labels = np.arange(3)
    assert follow(layer, labels) is labels


class VoidRotation(layers.RandomRotation):
    """Gives pixels from outside the image the label that the loss ignores."""

    def transform_segmentation_masks(
        self, masks, transformation, training=True
    ):
        return keras.ops.image.affine_transform(
            keras.ops.cast(masks, "float32"),
            transformation["rotation_matrix"],
            interpolation="nearest",
            fill_mode="constant",
            fill_value=255,
            data_format=self.data_format,
        )


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_pixels_with_a_custom_label(data_format):
    layer = VoidRotation(
        0.2,
        fill_mode="constant",
        fill_value=255,
        interpolation="nearest",
        data_format=data_format,
    )
    axis = -1 if data_format == "channels_last" else 1
    images = np.stack([MASK] * 3, axis=axis).astype("float32")
    augment = ConsistentAugment(layer, seed=1)
    view, drawn = augment.draw(images)
    moved = augment.follow(MASK, drawn, images)
    assert keras.backend.standardize_dtype(moved.dtype) == "int32"
    expected = np.take(to_numpy(view), 0, axis=axis)
    np.testing.assert_array_equal(to_numpy(moved), expected)
    assert np.sum(to_numpy(moved) == 255) > np.sum(MASK == 255)


@pytest.mark.parametrize("layer", [Roll, NoisyFlip, lambda: MyCrop(8, 8)])
def test_a_layer_without_a_method_for_masks(layer):
    layer = layer()
    with pytest.raises(
        ValueError,
        match=rf"\({type(layer).__name__}\).*transform_segmentation_masks",
    ):
        follow(layer, MASK)


def test_a_layer_with_a_method_for_masks():
    np.testing.assert_array_equal(
        to_numpy(follow(RollMasks(), MASK)), np.roll(MASK, 3, axis=1)
    )


class Halves(Roll):
    """Returns images and masks of different sizes."""

    def transform_segmentation_masks(
        self, masks, transformation, training=True
    ):
        return masks[:, ::2, ::2]

    def compute_output_shape(self, shape):
        return shape


def test_a_layer_that_returns_another_size():
    with pytest.raises(
        ValueError, match=r"must return masks.*\(16, 16, 1\).*\(8, 8, 1\)"
    ):
        follow(Halves(), MASK)


@pytest.mark.parametrize(
    "layer",
    [layers.RandomRotation(0.1), layers.CutMix(), RollMasks()],
    ids=lambda layer: type(layer).__name__,
)
def test_a_map_at_another_resolution(layer):
    with pytest.raises(
        ValueError, match=r"\(3, 8, 8\).*width of the images, \(16, 16\)"
    ):
        follow(layer, MASK[:, ::2, ::2])


def test_a_map_whose_size_would_not_be_whole():
    with pytest.raises(
        ValueError, match=r"size after it, \(9, 12\), must be a multiple of 2"
    ):
        follow(InceptionCrop(9, 12), MASK[:, ::2, ::2])


def test_unknown_sizes():
    """Some layers do not require static sizes."""
    unknown = keras.KerasTensor((None, None, None, 3))
    augment = ConsistentAugment([layers.RandomFlip(), MixUp()], seed=1)
    drawn = augment.draw(IMAGES)[1]
    np.testing.assert_array_equal(
        *(
            to_numpy(augment.follow(MASK, drawn, images))
            for images in (unknown, IMAGES)
        )
    )
    augment = ConsistentAugment(layers.RandomZoom(0.1), seed=1)
    drawn = augment.draw(IMAGES)[1]
    with pytest.raises(
        ValueError, match="requires maps of the height and width"
    ):
        augment.follow(MASK, drawn, unknown)
    augment = ConsistentAugment(InceptionCrop(8, 8), seed=1)
    drawn = augment.draw(IMAGES)[1]
    with pytest.raises(ValueError, match="must be static"):
        augment.follow(MASK, drawn, unknown)


def test_class_indices_with_several_channels():
    with pytest.raises(ValueError, match=r"Class indices.*\(3, 16, 16, 2\)"):
        follow(MixUp(), np.stack([MASK] * 2, axis=-1), num_classes=5)


@pytest.mark.parametrize("kind", ["CutMix", "RandomErasing"])
def test_images_of_a_sample_with_other_channels(kind):
    """The depth image would get three channels."""
    augment = ConsistentAugment(getattr(layers, kind)())
    with pytest.raises(ValueError, match="draws for one number of channels"):
        augment.draw({"image": IMAGES, "depth": IMAGES[..., :1]})


def test_images_of_a_sample_with_other_sizes():
    images = {
        "a": np.zeros((3, 3, 16, 16), "float32"),
        "b": np.zeros((3, 3, 16, 24), "float32"),
    }
    augment = ConsistentAugment(
        layers.RandomRotation(0.1, data_format="channels_first")
    )
    with pytest.raises(ValueError, match="draws for one image size"):
        augment.draw(images)
    augment = ConsistentAugment(
        layers.RandomContrast(0.1, data_format="channels_first")
    )
    augment.draw({"rgb": images["a"], "depth": images["a"][:, :1]})
