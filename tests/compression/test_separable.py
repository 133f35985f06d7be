"""Separable convolutions: the best approximation of any kernel."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import Subclassed
from common import same_outputs
from common import to_numpy
from common import weights_of
from common import with_tied_layers
from keras import layers

from keras_distill.compression import separate

pytestmark = pytest.mark.any_backend

IMAGE = (9, 9, 4)


def model_of(layer, shape=IMAGE, separable=True):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs), name="whole")
    generator = np.random.default_rng(0)
    if separable:
        *window, channels, filters = layer.kernel.shape
        depthwise = generator.normal(size=(*window, channels, 1))
        pointwise = generator.normal(size=(channels, filters))
        layer.kernel.assign(0.1 * depthwise * pointwise)
    if layer.use_bias:
        layer.bias.assign(np.linspace(-1, 1, layer.bias.shape[0]))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "use_bias": False},
        {"strides": 2, "padding": "same", "activation": "tanh"},
        {"strides": 2},
        {"dilation_rate": 2, "padding": "same"},
        {"kernel_size": (1, 3)},
        {"kernel_size": 5},
    ],
)
def test_exact_for_separable_kernels(options):
    options = {"kernel_size": 3, **options}
    model = model_of(layers.Conv2D(12, **options, name="layer"))
    copy = separate(model)
    same_outputs(model, copy)
    assert type(copy.get_layer("layer")) is layers.SeparableConv2D
    assert copy.count_params() < model.count_params()


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="has no such kernels for the CPU"
)
def test_channels_first():
    layer = layers.Conv2D(12, 3, data_format="channels_first")
    model = model_of(layer, (4, 9, 9))
    same_outputs(model, separate(model))


def test_the_nearest_kernel():
    model = model_of(layers.Conv2D(12, 3), separable=False)
    kernel = to_numpy(model.layers[1].kernel)
    layer = separate(model).layers[1]
    depthwise = to_numpy(layer.depthwise_kernel)
    pointwise = to_numpy(layer.pointwise_kernel)
    missed = np.sum((kernel - depthwise * pointwise[0, 0]) ** 2, (0, 1, 3))
    for channel in range(4):
        part = kernel[:, :, channel].reshape(9, 12)
        values = np.linalg.eigvalsh(part @ part.T)
        assert missed[channel] == pytest.approx(values[:-1].sum(), rel=1e-4)


class Own(layers.Conv2D):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Conv2D(12, 1),
        # 4 * (9 + 1) weights instead of 4 * 9.
        lambda: layers.Conv2D(1, 3),
        lambda: layers.Conv2D(12, 3, groups=2),
        lambda: layers.Conv2D(12, 3, strides=(2, 1)),
        lambda: layers.Conv2D(12, 3, kernel_constraint="non_neg"),
        lambda: layers.Conv2D(12, 3, lora_rank=2),
        lambda: layers.Conv2DTranspose(12, 3),
        lambda: Own(12, 3),
    ],
)
def test_what_stays(make):
    model = model_of(make(), separable=False)
    copy = separate(model)
    assert type(copy.layers[1]) is type(model.layers[1])
    same_outputs(model, copy)


def test_models_inside_and_shared_layers():
    shared = layers.Conv2D(4, 3, padding="same")
    inner = model_of(shared)
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, shared(inner(inputs)))
    copy = separate(model)
    same_outputs(model, copy)
    assert copy.count_params() == 4 * 9 + 4 * 4 + 4


def test_what_is_kept(tmp_path):
    layer = layers.Conv2D(
        12,
        3,
        trainable=False,
        kernel_regularizer="l2",
        kernel_initializer="he_normal",
        dtype="mixed_bfloat16",
    )
    model = model_of(layer)
    model.compile("sgd", "mse")
    before = weights_of(model)
    copy = separate(model)
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert copy.name == "whole" and not copy.compiled
    new = copy.layers[1]
    assert not new.trainable
    assert new.dtype_policy.name == "mixed_bfloat16"
    for part in ("depthwise", "pointwise"):
        regularizer = getattr(new, f"{part}_regularizer")
        initializer = getattr(new, f"{part}_initializer")
        assert isinstance(regularizer, keras.regularizers.L2)
        assert isinstance(initializer, keras.initializers.HeNormal)
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    for old, new in zip(weights_of(copy), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_copy_trains():
    copy = separate(model_of(layers.Conv2D(12, 3)))
    before = weights_of(copy)
    copy.compile("sgd", "mse")
    copy.fit(np.ones((4, *IMAGE)), np.ones((4, 7, 7, 12)), verbose=0)
    for old, new in zip(before, weights_of(copy), strict=True):
        assert not np.array_equal(old, new)


def test_refused_models():
    for model in (Subclassed(), keras.Sequential([layers.Conv2D(4, 3)])):
        with pytest.raises(
            ValueError, match=r"`separate` requires a functional"
        ):
            separate(model)
    message = (
        r"`separate` cannot separate layers.*'dense' and 'tied'.*dense/kernel'"
    )
    with pytest.raises(ValueError, match=message):
        separate(with_tied_layers())
