import keras
import numpy as np
import pytest
from common import BACKEND
from common import images
from common import to_numpy

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill.views._transformations import tensors_of


def chain(seed=3, **kwargs):
    return ConsistentAugment(
        [
            InceptionCrop(8, 8, **kwargs),
            keras.layers.RandomFlip("horizontal"),
            MixUp(),
        ],
        seed=seed,
    )


def test_the_same_seed_gives_the_same_views():
    x, _ = images(6, 16, 3)
    first, second = chain(), chain()
    for _ in range(3):
        a, b = first(x, training=True), second(x, training=True)
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    assert not np.array_equal(to_numpy(first(x, training=True)), to_numpy(a))


def test_without_a_seed_the_layers_draw_for_themselves():
    x, _ = images(6, 16, 3)
    views = [
        ConsistentAugment([InceptionCrop(8, 8, seed=1)])(x, training=True)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*map(to_numpy, views))


def test_labels_and_weights_follow():
    x, _ = images(6, 16, 3)
    data = {
        "images": x,
        "labels": np.eye(6, dtype="float32"),
        "sample_weight": np.arange(6, dtype="float32"),
    }
    out = to_numpy(chain()(data, training=True))
    np.testing.assert_allclose(
        out["sample_weight"], out["labels"] @ np.arange(6), rtol=1e-5
    )


def test_both_renderings_get_the_same_transformations():
    """The teacher's larger view, resized, is the student's view."""
    smooth = np.linspace(0, 1, 64)[None, :, None, None] * np.ones((4, 1, 64, 1))
    smooth = (smooth + smooth.transpose(0, 2, 1, 3) * 3).astype("float32")
    smooth *= np.arange(1, 5).reshape(4, 1, 1, 1)
    views = chain(teacher_size=16, area_range=(0.5, 1.0))(smooth, training=True)
    student, teacher = to_numpy(views["student"]), to_numpy(views["teacher"])
    assert student.shape == (4, 8, 8, 1) and teacher.shape == (4, 16, 16, 1)
    shrunk = teacher.reshape(4, 8, 2, 8, 2, 1).mean((2, 4))
    np.testing.assert_allclose(
        shrunk[:, 1:-1, 1:-1], student[:, 1:-1, 1:-1], atol=0.1
    )


def test_several_images_per_sample():
    x, _ = images(6, 16, 3)
    view = chain()({"images": (x, x[..., :1])}, training=True)["images"]
    np.testing.assert_allclose(
        to_numpy(view[0])[..., :1], to_numpy(view[1]), rtol=1e-5, atol=1e-3
    )


# Layers of Keras, each with arguments that have an effect.
KERAS_LAYERS = {
    "AutoContrast": {},
    "CenterCrop": {"height": 8, "width": 8},
    "CutMix": {},
    "Equalization": {},
    "MixUp": {},
    "RandomBrightness": {"factor": 0.5},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomContrast": {"factor": 0.5},
    "RandomCrop": {"height": 8, "width": 8},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {},
    "RandomHue": {"factor": 0.5},
    "RandomInvert": {"factor": 1.0},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.2},
    "RandomSaturation": {"factor": 0.5},
    "RandomSharpness": {"factor": 0.5},
    "RandomShear": {"x_factor": 0.3},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
    "Resizing": {"height": 8, "width": 8},
    "Solarization": {},
}


@pytest.mark.parametrize("name", KERAS_LAYERS)
def test_keras_layers_repeat_with_the_seed(name):
    x, _ = images(4, 16, 3)
    layer = getattr(keras.layers, name)
    views = [
        ConsistentAugment([layer(**KERAS_LAYERS[name])], seed=1)(
            x, training=True
        )
        for _ in range(2)
    ]
    np.testing.assert_allclose(*map(to_numpy, views), atol=1e-3)
    assert np.all(np.isfinite(to_numpy(views[0])))


@pytest.mark.parametrize(
    "name",
    ["AugMix", "RandAugment", "RandomColorJitter", "RandomElasticTransform"],
)
def test_keras_layers_that_can_not_be_consistent(name):
    layer = getattr(keras.layers, name)()
    with pytest.raises(ValueError, match=rf"\({name}\) cannot be consistent"):
        ConsistentAugment([layer])


@pytest.mark.parametrize(
    "layer", [keras.layers.GaussianNoise(0.1), keras.layers.Rescaling(2.0)]
)
def test_layers_that_do_not_draw_and_apply_separately(layer):
    with pytest.raises(ValueError, match="student_preprocessing"):
        ConsistentAugment([layer])


def test_not_a_layer():
    with pytest.raises(TypeError, match=r"takes Keras layers. Received"):
        ConsistentAugment([lambda x: x])


def test_a_layer_for_one_size_after_two_sizes():
    layers = [
        InceptionCrop(8, 8, teacher_size=16),
        keras.layers.RandomErasing(),
    ]
    with pytest.raises(ValueError, match=r"RandomErasing.*cannot follow"):
        ConsistentAugment(layers)


def test_two_second_sizes():
    crop = InceptionCrop(8, 8, teacher_size=16)
    with pytest.raises(ValueError, match="Only one layer can render a second"):
        ConsistentAugment([crop, InceptionCrop(8, 8, teacher_size=16)])


def test_different_data_formats():
    layers = [
        InceptionCrop(8, 8, data_format="channels_first"),
        keras.layers.RandomFlip(data_format="channels_last"),
    ]
    with pytest.raises(ValueError, match="must share one `data_format`"):
        ConsistentAugment(layers)


def test_data_that_is_not_images():
    with pytest.raises(
        ValueError, match=r"of rank 4. Received: shapes=\[\(4, 9\)\]"
    ):
        chain()(np.zeros((4, 9)), training=True)


def test_images_of_different_sizes_require_size_independent_layers():
    data = {"images": (np.zeros((4, 8, 8, 3)), np.zeros((4, 16, 16, 3)))}
    augment = ConsistentAugment([keras.layers.RandomErasing()])
    with pytest.raises(ValueError, match="draws for one image size"):
        augment(data, training=True)
    with pytest.raises(ValueError, match="supports one image per sample"):
        chain(teacher_size=4)(data, training=True)


def test_config_round_trip():
    augment = chain(teacher_size=12)
    twin = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(augment)
    )
    assert twin.get_config() == augment.get_config()
    x, _ = images(4, 16, 3)
    np.testing.assert_array_equal(
        to_numpy(twin(x, training=True)["teacher"]),
        to_numpy(augment(x, training=True)["teacher"]),
    )


def compiled_draw(augment, x):
    """Run `augment.draw` in a step compiled by the backend."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(augment.draw, jit_compile=True)(x)
    if BACKEND == "jax":
        import jax

        def draw(values, x):
            mapping = list(zip(augment.variables, values))
            with keras.StatelessScope(state_mapping=mapping):
                return augment.draw(x)

        return jax.jit(draw)([v.value for v in augment.variables], x)
    import torch

    return torch.compile(augment.draw, backend="eager")(torch.tensor(x))


def test_compiled_views_are_the_drawn_transformations():
    """XLA may draw other numbers than eager execution, but must apply them."""
    x, _ = images(4, 16, 3)
    augment = chain()
    view, drawn = compiled_draw(augment, x)
    expected = x
    for layer, transformation in zip(augment.layers, drawn):
        expected = layer.transform_images(expected, transformation)
    np.testing.assert_allclose(
        to_numpy(view), to_numpy(expected), rtol=1e-4, atol=1e-2
    )
    boxes = to_numpy(drawn[0]["boxes"])
    assert len(np.unique(boxes, axis=0)) == 4


@pytest.mark.parametrize("name", ["RandomRotation", "RandomShear"])
def test_every_image_of_a_sample_gets_the_same_transformation(name):
    """On PyTorch, some layers change the transformation that they apply."""
    x, _ = images(4)
    augment = ConsistentAugment(getattr(keras.layers, name)(0.3), seed=1)
    view, drawn = augment.draw({"a": x, "b": x})
    again, _ = augment.draw({"a": x, "b": x}, tensors_of(drawn))
    for other in (view["b"], again["a"], again["b"]):
        np.testing.assert_array_equal(to_numpy(view["a"]), to_numpy(other))
