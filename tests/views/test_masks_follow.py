"""Masks and weights per pixel get the same transformation as the images.

The reference is the image itself: each pixel of the image has the value of the
mask. With nearest-neighbour interpolation, view and mask must be equal.
"""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import to_numpy

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill.views._transformations import tensors_of

pytestmark = pytest.mark.any_backend

NEAREST = {"interpolation": "nearest"}

# Every layer of Keras that moves pixels, with nearest-neighbour interpolation.
MOVING = {
    "center crop": ("CenterCrop", {"height": 9, "width": 12}),
    "crop": ("RandomCrop", {"height": 9, "width": 12}),
    "crop of the same height": ("RandomCrop", {"height": 16, "width": 12}),
    "cut": ("CutMix", {}),
    "flip": ("RandomFlip", {}),
    "flip rows": ("RandomFlip", {"mode": "vertical"}),
    "flip columns": ("RandomFlip", {"mode": "horizontal"}),
    "resize": ("Resizing", {"height": 11, "width": 13, **NEAREST}),
    "enlarge": ("Resizing", {"height": 32, "width": 40, **NEAREST}),
    "resize a crop": (
        "Resizing",
        {"height": 9, "width": 9, "crop_to_aspect_ratio": True, **NEAREST},
    ),
    "rotate": ("RandomRotation", {"factor": 0.3, **NEAREST}),
    "rotate, wrap": (
        "RandomRotation",
        {"factor": 0.3, "fill_mode": "wrap", **NEAREST},
    ),
    "rotate, edge": (
        "RandomRotation",
        {"factor": 0.3, "fill_mode": "nearest", **NEAREST},
    ),
    "shear": ("RandomShear", {"x_factor": 0.4, "y_factor": 0.4, **NEAREST}),
    "translate": (
        "RandomTranslation",
        {"height_factor": 0.4, "width_factor": 0.4, **NEAREST},
    ),
    "zoom": (
        "RandomZoom",
        {"height_factor": (-0.5, 0.5), "width_factor": (-0.3, 0.6), **NEAREST},
    ),
}
# Layers that do not move pixels, if this version of Keras has them, with
# arguments that have an effect.
IN_PLACE = {
    "AutoContrast": {},
    "ContrastLimitedAdaptiveHistogramEqualization": {"tile_grid_size": (2, 2)},
    "Equalization": {},
    "RandomBrightness": {"factor": 0.5},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomContrast": {"factor": 0.5},
    "RandomErasing": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {},
    "RandomHue": {"factor": 0.5},
    "RandomInvert": {"factor": 1.0},
    "RandomPosterization": {"factor": 4},
    "RandomSaturation": {"factor": 0.5},
    "RandomSharpness": {"factor": 0.5},
    "Solarization": {},
}
DTYPES = ("int32", "uint8", "float32")


def moving(name, **kwargs):
    kind, arguments = MOVING[name]
    return getattr(keras.layers, kind)(**arguments, **kwargs)


def ids(batch=3, height=16, width=24, seed=0):
    """A mask of void labels and classes, `(batch, height, width)`."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, size=(batch, height, width))


def as_images(mask, data_format="channels_last"):
    axis = -1 if data_format == "channels_last" else 1
    return np.stack([mask] * 3, axis=axis).astype("float32")


def first_channel(view, data_format="channels_last"):
    view = to_numpy(view)
    return view[..., 0] if data_format == "channels_last" else view[:, 0]


def assert_same(mask, expected, dtype):
    assert keras.backend.standardize_dtype(mask.dtype) == dtype
    np.testing.assert_array_equal(to_numpy(mask), expected)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", MOVING)
def test_a_mask_follows_its_image(name, data_format):
    mask = ids()
    images = as_images(mask, data_format)
    augment = ConsistentAugment(moving(name, data_format=data_format), seed=3)
    view, drawn = augment.draw(images)
    expected = first_channel(view, data_format)
    assert expected.shape != mask.shape or np.any(expected != mask)
    axis = -1 if data_format == "channels_last" else 1
    for dtype in DTYPES:
        moved = augment.follow(mask.astype(dtype), drawn, images)
        assert_same(moved, expected, dtype)
    for channels in (1, 2):
        stacked = np.stack([mask.astype("int32")] * channels, axis=axis)
        moved = augment.follow(stacked, drawn, images)
        assert_same(moved, np.stack([expected] * channels, axis), "int32")


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["cut", "flip", "crop", "center crop"])
def test_half_precision_does_not_round_masks(name, policy):
    """float16 and bfloat16 cannot represent all whole numbers above 4096."""
    values = (ids() + 4097).astype("float32")
    exact, half = (
        ConsistentAugment(moving(name, dtype=dtype), seed=1)
        for dtype in ("float32", policy)
    )
    images = as_images(values)
    drawn = exact.draw(images)[1]
    expected = to_numpy(exact.follow(values, drawn, images))
    assert_same(half.follow(values, drawn, images), expected, "float32")
    assert np.all(np.isin(expected, values))


@pytest.mark.parametrize(
    "name", [name for name in IN_PLACE if hasattr(keras.layers, name)]
)
def test_layers_that_do_not_move_pixels(name):
    mask = ids()
    augment = ConsistentAugment(
        getattr(keras.layers, name)(**IN_PLACE[name]), seed=1
    )
    assert not augment.moves_pixels and not augment.mixes_labels
    images = as_images(mask)
    drawn = augment.draw(images)[1]
    for values in (mask, mask[..., 0, :2], np.zeros((3, 7, 4)), mask[:, 0, 0]):
        assert augment.follow(values, drawn, images) is values


def test_every_layer_of_keras_is_known():
    """A new layer of Keras is refused until a rule for masks is added."""
    refused = {
        "AugMix",
        "RandAugment",
        "RandomColorJitter",
        "RandomElasticTransform",
    }
    known = {kind for kind, _ in MOVING.values()} | set(IN_PLACE) | refused
    known |= {"MixUp", "RandomPerspective", "MaxNumBoundingBoxes"}
    layers = {
        name
        for name in dir(keras.layers)
        if hasattr(getattr(keras.layers, name), "get_random_transformation")
    }
    assert layers <= known


@pytest.mark.parametrize("kind", ["RandomCrop", "CenterCrop"])
def test_a_crop_that_enlarges(kind):
    """Images are interpolated, masks are not."""
    mask = ids(2, 4, 6)
    augment = ConsistentAugment(getattr(keras.layers, kind)(8, 12), seed=1)
    images = as_images(mask)
    moved = augment.follow(mask, augment.draw(images)[1], images)
    np.testing.assert_array_equal(
        to_numpy(moved), mask.repeat(2, axis=1).repeat(2, axis=2)
    )


def reference_crop(mask, boxes, size):
    """Take the pixel at the centre of each sample, in float64."""
    result = np.zeros((len(mask), *size), mask.dtype)
    for sample, (top, left, height, width) in enumerate(boxes):
        rows = top + height * (np.arange(size[0]) + 0.5) / size[0]
        columns = left + width * (np.arange(size[1]) + 0.5) / size[1]
        rows = (rows * mask.shape[1]).astype(int)
        columns = (columns * mask.shape[2]).astype(int)
        result[sample] = mask[sample][rows][:, columns]
    return result


@pytest.mark.parametrize("teacher_size", [None, 40])
def test_an_inception_crop(teacher_size):
    mask = ids(6)
    images = as_images(mask)
    crop = InceptionCrop(10, 14, teacher_size=teacher_size)
    augment = ConsistentAugment(crop, seed=1)
    drawn = augment.draw(images)[1]
    boxes = to_numpy(drawn[0]["boxes"]).astype("float64")
    expected = reference_crop(mask, boxes, (10, 14))
    for dtype in DTYPES:
        values = mask.astype(dtype)
        assert_same(augment.follow(values, drawn, images), expected, dtype)
        assert_same(
            crop.transform_segmentation_masks(values, drawn[0]), expected, dtype
        )
        assert_same(
            crop.transform_segmentation_masks(values[..., None], drawn[0]),
            expected[..., None],
            dtype,
        )


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int16", "int64", "float16", "float64"]
)
def test_every_dtype_is_kept(dtype):
    mask = (ids() % 100).astype(dtype)
    images = as_images(mask)
    augment = ConsistentAugment([InceptionCrop(10, 14), *chain().layers])
    drawn = augment.draw(images)[1]
    tensor = keras.ops.convert_to_tensor(mask)
    moved = augment.follow(tensor, drawn, images)
    assert moved.dtype == tensor.dtype
    whole = augment.follow(mask.astype("int32"), drawn, images)
    np.testing.assert_array_equal(to_numpy(moved), to_numpy(whole))


def test_an_inception_crop_shows_the_mask_where_the_image_is():
    """Half of the image is one class, which the colour of the view shows."""
    mask = np.zeros((16, 32, 32), "int32")
    mask[:, :, 16:] = 1
    augment = ConsistentAugment(
        [InceptionCrop(12, 12), keras.layers.RandomFlip()], seed=2
    )
    images = as_images(mask)
    view, drawn = augment.draw(images)
    colour = first_channel(view)
    moved = to_numpy(augment.follow(mask, drawn, images))
    sure = np.abs(colour - 0.5) > 0.49
    np.testing.assert_array_equal(moved[sure], colour[sure] > 0.5)
    assert sure.mean() > 0.8 and 0.1 < moved.mean() < 0.9


CHAIN = ("zoom", "flip", "rotate", "crop", "cut")


def chain(**kwargs):
    return ConsistentAugment([moving(name, **kwargs) for name in CHAIN], seed=3)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_several_layers_and_their_recording(data_format):
    mask = ids()
    images = as_images(mask, data_format)
    augment = chain(data_format=data_format)
    view, drawn = augment.draw(images)
    expected = first_channel(view, data_format)
    recorded = {k: to_numpy(v) for k, v in tensors_of(drawn).items()}
    again = augment.draw(images, recorded)[1]
    for transformations in (drawn, again):
        moved = augment.follow(mask.astype("int32"), transformations, images)
        assert_same(moved, expected, "int32")
        # Transformations are not changed.
        moved = augment.follow(mask.astype("int32"), transformations, images)
        assert_same(moved, expected, "int32")


def compiled(function, augment, *arguments, jit_compile):
    """Run a function of tensors in a step that the backend compiles."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, jit_compile=jit_compile)
        return function(*map(tf.constant, arguments))
    if BACKEND == "jax":
        import jax

        def stateless(values, *arguments):
            mapping = list(zip(augment.variables, values))
            with keras.StatelessScope(state_mapping=mapping):
                return function(*arguments)

        values = [variable.value for variable in augment.variables]
        return jax.jit(stateless)(values, *arguments)
    import torch

    arguments = map(torch.tensor, arguments)
    return torch.compile(function, backend="eager")(*arguments)


@pytest.mark.every_backend
# `torch.compile`, of the Beta distribution of `keras.layers.CutMix`.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("layers", ["geometric", "crops and mixing"])
def test_in_a_compiled_step(layers):
    mask = ids().astype("int32")
    if layers == "geometric":
        augment = chain()
    else:
        augment = ConsistentAugment(
            [InceptionCrop(8, 8), keras.layers.RandomFlip(), MixUp()], seed=3
        )

    def step(images, mask):
        view, drawn = augment.draw(images)
        return view, augment.follow(mask, drawn, images), drawn

    # TensorFlow cannot compile rotation or the distribution of `CutMix` by XLA.
    view, moved, drawn = compiled(
        step,
        augment,
        as_images(mask),
        mask,
        jit_compile=layers == "crops and mixing",
    )
    if layers == "geometric":
        assert_same(moved, first_channel(view), "int32")
    else:
        again = augment.follow(mask, drawn, as_images(mask))
        np.testing.assert_allclose(to_numpy(moved), to_numpy(again), atol=1e-3)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_maps_at_another_resolution(stride):
    """A map that is constant on each cell, at full and at reduced size."""
    small = ids(3, 32 // stride, 64 // stride)
    full = small.repeat(stride, axis=1).repeat(stride, axis=2)
    images = as_images(full)
    for layers, exact in (
        ([keras.layers.RandomFlip(), keras.layers.RandomBrightness(0.2)], True),
        ([keras.layers.Resizing(64, 128)], True),
        ([InceptionCrop(16, 24), keras.layers.RandomFlip()], False),
    ):
        augment = ConsistentAugment(layers, seed=1)
        drawn = augment.draw(images)[1]
        moved = augment.follow(small, drawn, images)
        whole = to_numpy(augment.follow(full, drawn, images))
        if exact:
            expected = whole[:, ::stride, ::stride]
        else:
            boxes = to_numpy(drawn[0]["boxes"]).astype("float64")
            size = (16 // stride, 24 // stride)
            expected = reference_crop(small, boxes, size)
            rows, columns = (
                to_numpy(drawn[1]["flips"]).reshape(-1, 1, 1),
                (slice(None), slice(None, None, -1), slice(None, None, -1)),
            )
            expected = np.where(rows, expected[columns], expected)
        np.testing.assert_array_equal(to_numpy(moved), expected)


def test_weights_per_pixel_with_labels():
    labels, generator = ids(), np.random.default_rng(1)
    weights = generator.uniform(size=256).astype("float32")
    images = as_images(labels)
    augment = chain()
    drawn = augment.draw(images)[1]
    moved = to_numpy(augment.follow(labels, drawn, images))
    followed = augment.follow(weights[labels], drawn, images)
    assert_same(followed, weights[moved], "float32")


def test_several_images_per_sample_of_two_sizes():
    mask = ids()
    large = as_images(mask)
    small = large[:, ::2, ::2]
    augment = ConsistentAugment(keras.layers.RandomFlip(), seed=1)
    images = {"large": large, "small": small}
    view, drawn = augment.draw(images)
    for values, name in ((mask, "large"), (mask[:, ::2, ::2], "small")):
        moved = augment.follow(values, drawn, images)
        np.testing.assert_array_equal(
            to_numpy(moved), first_channel(view[name])
        )


def test_a_layer_called_on_a_dict():
    mask = ids().astype("int32")
    data = {
        "images": as_images(mask),
        "segmentation_masks": mask,
        "sample_weight": mask.astype("float32"),
        "labels": np.arange(3),
    }
    out = chain_without_mixing()(data, training=True)
    expected = first_channel(out["images"])
    assert_same(out["segmentation_masks"], expected, "int32")
    assert_same(out["sample_weight"], expected, "float32")
    np.testing.assert_array_equal(to_numpy(out["labels"]), np.arange(3))
    plain = chain()(data, training=False)["segmentation_masks"]
    np.testing.assert_array_equal(to_numpy(plain), mask)


def chain_without_mixing():
    return ConsistentAugment([moving(name) for name in CHAIN[:-1]], seed=3)
