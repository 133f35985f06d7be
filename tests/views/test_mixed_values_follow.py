"""Labels, weights and maps with layers that mix images."""

import keras
import numpy as np
import pytest
from common import to_numpy

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp

pytestmark = pytest.mark.any_backend

CLASSES = 5
MIXING = {
    "MixUp": MixUp,
    "Keras's MixUp": keras.layers.MixUp,
    "CutMix": keras.layers.CutMix,
}


@pytest.fixture(params=MIXING)
def mixed(request):
    """Layers, a transformation, its images, and the matrix of mix weights."""
    augment = ConsistentAugment(MIXING[request.param](), seed=1)
    images = np.random.default_rng(0).uniform(0, 255, (6, 8, 12, 3))
    images = images.astype("float32")
    drawn = augment.draw(images)[1]
    transformation = to_numpy(drawn[0])
    weight = transformation.get("weight", transformation.get("mix_weight"))
    partner = transformation.get(
        "partner", transformation.get("permutation_order")
    )
    weight = weight.reshape(6).astype("float64")
    shares = np.diag(weight)
    shares[np.arange(6), partner] += 1 - weight
    return augment, drawn, images, shares


def one_hot(indices):
    return (np.asarray(indices)[..., None] == np.arange(CLASSES)).astype(float)


def assert_close(values, expected):
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    assert tuple(values.shape) == expected.shape
    np.testing.assert_allclose(to_numpy(values), expected, atol=1e-6)


# Contains two void labels.
LABELS = np.array([0, 4, 255, 2, -1, 2])


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_class_indices(mixed, dtype, shape):
    augment, drawn, images, shares = mixed
    labels = LABELS.astype(dtype).reshape(shape)
    moved = augment.follow(labels, drawn, images, num_classes=CLASSES)
    assert_close(moved, shares @ one_hot(LABELS))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 4)])
@pytest.mark.parametrize("dtype", ["int32", "float32", "bool"])
def test_values_per_sample_that_are_not_indices(mixed, shape, dtype):
    augment, drawn, images, shares = mixed
    values = np.random.default_rng(1).uniform(0, 2, shape).astype(dtype)
    assert_close(augment.follow(values, drawn, images), shares @ values)


def test_class_indices_per_place(mixed):
    augment, drawn, images, shares = mixed
    labels = np.random.default_rng(1).integers(0, CLASSES, (6, 7))
    moved = augment.follow(labels, drawn, images, num_classes=CLASSES)
    assert_close(moved, np.einsum("ij,jtc->itc", shares, one_hot(labels)))


@pytest.fixture(params=["MixUp", "Keras's MixUp"])
def blended(request):
    augment = ConsistentAugment(MIXING[request.param](), seed=1)
    images = np.random.default_rng(0).uniform(0, 255, (6, 8, 12, 3))
    images = images.astype("float32")
    view, drawn = augment.draw(images)
    # The images show the weights: they are blended with the same weights.
    flat = images.reshape(6, -1).astype("float64")
    shares = to_numpy(view).reshape(6, -1) @ np.linalg.pinv(flat)
    return augment, drawn, images, shares


def masks():
    values = np.random.default_rng(1).integers(0, CLASSES, (6, 8, 12))
    values[:, :2] = 255
    return values


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
@pytest.mark.parametrize("channels", [(), (1,)])
def test_masks_of_class_indices_are_blended(blended, dtype, channels):
    augment, drawn, images, shares = blended
    values = masks().astype(dtype).reshape(6, 8, 12, *channels)
    moved = augment.follow(values, drawn, images, num_classes=CLASSES)
    expected = np.einsum("ij,jhwc->ihwc", shares, one_hot(masks()))
    assert tuple(moved.shape) == (6, 8, 12, CLASSES)
    np.testing.assert_allclose(to_numpy(moved), expected, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_weights_per_pixel_are_blended(blended, stride):
    augment, drawn, images, shares = blended
    weights = (
        np.random.default_rng(1)
        .uniform(size=(6, 8, 12))[:, ::stride, ::stride]
        .astype("float32")
    )
    moved = augment.follow(weights, drawn, images)
    expected = np.einsum("ij,jhw->ihw", shares, weights)
    np.testing.assert_allclose(to_numpy(moved), expected, atol=1e-4)


def test_channels_first():
    values = masks()
    augment = ConsistentAugment(
        [keras.layers.RandomFlip(data_format="channels_first"), MixUp()], seed=1
    )
    images = np.stack([values] * 3, axis=1).astype("float32")
    drawn = augment.draw(images)[1]
    last = augment.follow(values, drawn, images, num_classes=CLASSES)
    first = augment.follow(values[:, None], drawn, images, num_classes=CLASSES)
    assert tuple(last.shape) == (6, 8, 12, CLASSES)
    assert tuple(first.shape) == (6, CLASSES, 8, 12)
    np.testing.assert_array_equal(
        to_numpy(first), to_numpy(last).transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
def test_cut_mix_pastes_masks(dtype):
    """Class indices become one-hot, as with every mix; nothing else changes."""
    values = masks().astype(dtype)
    augment = ConsistentAugment(keras.layers.CutMix(), seed=1)
    images = np.stack([values] * 3, axis=-1).astype("float32")
    view, drawn = augment.draw(images)
    expected = to_numpy(view)[..., 0]
    moved = augment.follow(values, drawn, images, num_classes=CLASSES)
    assert_close(moved, one_hot(expected))
    moved = augment.follow(values, drawn, images)
    assert keras.backend.standardize_dtype(moved.dtype) == dtype
    np.testing.assert_array_equal(to_numpy(moved), expected)


def test_layers_before_and_after_a_mix():
    """The mix weights apply to the result of the layers before."""
    values = masks()
    crop, flip = InceptionCrop(6, 6), keras.layers.RandomFlip()
    augment = ConsistentAugment([crop, MixUp(), flip], seed=1)
    images = np.stack([values] * 3, axis=-1).astype("float32")
    drawn = augment.draw(images)[1]
    moved = augment.follow(values, drawn, images, num_classes=CLASSES)
    cropped = one_hot(
        to_numpy(crop.transform_segmentation_masks(values, drawn[0]))
    )
    weight = to_numpy(drawn[1]["weight"]).reshape(-1, 1, 1, 1)
    partner = to_numpy(drawn[1]["partner"])
    expected = weight * cropped + (1 - weight) * cropped[partner]
    flips = to_numpy(drawn[2]["flips"])
    expected = np.where(flips, expected[:, ::-1, ::-1], expected)
    assert_close(moved, expected)


def test_mix_up_called_on_masks():
    data = {
        "images": np.random.rand(6, 8, 12, 3).astype("float32"),
        "labels": np.eye(6, dtype="float32"),
        "segmentation_masks": one_hot(masks()).astype("float32"),
    }
    out = to_numpy(MixUp(seed=2)(data, training=True))
    np.testing.assert_allclose(
        out["segmentation_masks"],
        np.einsum("ij,jhwc->ihwc", out["labels"], one_hot(masks())),
        atol=1e-5,
    )
    layer = MixUp()
    drawn = layer.get_random_transformation(data["images"])
    with pytest.raises(ValueError, match="Received: masks of dtype=int"):
        layer.transform_segmentation_masks(masks(), drawn)


@pytest.mark.parametrize("key", ["labels", "segmentation_masks"])
def test_a_layer_called_on_class_indices(key):
    data = {"images": np.zeros((6, 8, 12, 3), "float32"), key: masks()}
    if key == "labels":
        data[key] = LABELS
    augment = ConsistentAugment(MixUp())
    with pytest.raises(ValueError, match=r"cannot be blended.*ops.one_hot"):
        augment(data, training=True)


# Custom layers.


class Swap(keras.layers.Layer):
    """Blends each sample with the next one."""

    mixes_labels = True

    def get_random_transformation(self, images, training=True, seed=None):
        return {"share": 0.25}

    def transform_images(self, images, transformation, training=True):
        share = transformation["share"]
        return (1 - share) * images + share * keras.ops.roll(images, -1, axis=0)

    transform_labels = transform_images
    transform_segmentation_masks = transform_images


class Silent(Swap):
    mixes_labels = None


class LabelsStay(Swap):
    mixes_labels = False

    def transform_labels(self, labels, transformation, training=True):
        return labels

    def transform_segmentation_masks(self, masks, transformation, training):
        return masks


class NoMethod(keras.layers.Layer):
    mixes_labels = True
    get_random_transformation = Swap.get_random_transformation
    transform_images = Swap.transform_images


class LosesClasses(Swap):
    def transform_labels(self, labels, transformation, training=True):
        return labels[:, :2]


class SwapsSides(keras.layers.RandomFlip):
    """Has a `transform_labels`, and does not define `mixes_labels`."""

    def transform_labels(self, labels, transformation, training=True):
        return labels


SHARES = 0.75 * np.eye(6) + 0.25 * np.roll(np.eye(6), 1, axis=1)


def test_a_custom_mixing_layer():
    augment = ConsistentAugment([Swap()])
    assert augment.mixes_labels and augment.moves_pixels
    images = np.random.rand(6, 8, 12, 3).astype("float32")
    drawn = augment.draw(images)[1]
    moved = augment.follow(LABELS, drawn, images, num_classes=CLASSES)
    assert_close(moved, SHARES @ one_hot(LABELS))
    weights = np.arange(6)
    assert_close(augment.follow(weights, drawn, images), SHARES @ weights)
    moved = augment.follow(masks(), drawn, images, num_classes=CLASSES)
    assert_close(moved, np.einsum("ij,jhwc->ihwc", SHARES, one_hot(masks())))


def test_a_layer_that_declares_that_labels_do_not_change():
    augment = ConsistentAugment([LabelsStay()])
    assert not augment.mixes_labels
    images = np.random.rand(6, 8, 12, 3).astype("float32")
    drawn = augment.draw(images)[1]
    assert augment.follow(LABELS, drawn, images, CLASSES) is LABELS
    moved = augment.follow(masks(), drawn, images, CLASSES)
    np.testing.assert_array_equal(to_numpy(moved), masks())


@pytest.mark.parametrize("layer", [Silent, SwapsSides])
def test_a_layer_that_declares_nothing(layer):
    with pytest.raises(
        ValueError, match=rf"\({layer.__name__}\) has a custom `transform_"
    ):
        ConsistentAugment([layer()])


def test_a_mixing_layer_without_the_method():
    with pytest.raises(
        ValueError, match="must have a method `transform_labels"
    ):
        ConsistentAugment([NoMethod()])


def test_a_mixing_layer_that_changes_shapes():
    augment = ConsistentAugment([LosesClasses()])
    images = np.random.rand(6, 8, 12, 3).astype("float32")
    drawn = augment.draw(images)[1]
    with pytest.raises(
        ValueError, match=r"must keep the shape.*\(6, 5\), returned: \(6, 2\)"
    ):
        augment.follow(LABELS, drawn, images, CLASSES)


def test_a_subclass_of_a_layer_that_mixes():
    class Mine(keras.layers.CutMix):
        """The same layer with another default."""

    augment = ConsistentAugment([Mine()], seed=1)
    plain = ConsistentAugment([keras.layers.CutMix()], seed=1)
    assert augment.mixes_labels
    images = np.random.rand(6, 8, 12, 3).astype("float32")
    for values in (LABELS, masks()):
        a, b = (
            to_numpy(chain.follow(values, chain.draw(images)[1], images, 5))
            for chain in (augment, plain)
        )
        np.testing.assert_array_equal(a, b)
