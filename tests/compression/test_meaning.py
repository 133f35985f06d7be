"""Compressed models compute the same, for networks of many kinds."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import in_float64
from common import to_numpy
from keras import layers
from reference import pruning as reference

from keras_distill.compression import factorize
from keras_distill.compression import prune_channels
from keras_distill.compression import separate

# Large networks; small ones are compared on every backend in the tests of each
# function.
pytestmark = pytest.mark.one_backend("torch")

# PyTorch computes means in float32, and JAX divisions.
TOLERANCE = 1e-9 if BACKEND == "tensorflow" else 1e-4
RANK = 3


@pytest.fixture(autouse=True)
def precision():
    with in_float64():
        yield


def conv(width, name, window=3, **options):
    return layers.Conv2D(width, window, padding="same", name=name, **options)


def block(x, width, name, **options):
    x = conv(width, name, use_bias=False)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x, **options)
    return layers.ReLU()(x)


def unet():
    inputs = keras.Input((8, 8, 3))
    first = block(inputs, 8, "down_1")
    second = block(layers.MaxPooling2D()(first), 12, "down_2")
    x = block(layers.MaxPooling2D()(second), 16, "middle")
    for width, skip, name in ((12, second, "up_2"), (8, first, "up_1")):
        up = layers.Conv2DTranspose(width, 2, 2, name=f"{name}_transposed")
        x = block(layers.Concatenate()([up(x), skip]), width, name)
    return keras.Model(inputs, conv(3, "mask", 1)(x))


def mobilenet_v3():
    return keras.applications.MobileNetV3Small(
        (32, 32, 3),
        alpha=0.5,
        weights=None,
        classes=5,
        classifier_activation=None,
        dropout_rate=0.0,
        include_preprocessing=False,
    )


def vit():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 2, 2, name="patches")(inputs)
    x = layers.Reshape((16, 12))(x)
    for index in range(2):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(2, 6)(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(24, activation="gelu", name=f"mlp_{index}")(y)
        x = layers.Add()([x, layers.Dense(12, name=f"out_{index}")(y)])
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def frozen_backbone():
    """A frozen nested model in inference mode, and a trainable head."""
    inner = keras.Input((8, 8, 3))
    x = block(block(inner, 8, "stem"), 8, "body")
    backbone = keras.Model(inner, x, name="backbone")
    backbone.trainable = False
    inputs = keras.Input((8, 8, 3))
    x = block(backbone(inputs, training=False), 8, "neck")
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def norms_in_inference_mode():
    inputs = keras.Input((8, 8, 3))
    x = block(inputs, 8, "stem", training=False)
    x = block(x, 8, "body", training=False)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(5)(x))


MODELS = {
    function.__name__: function
    for function in (
        unet,
        mobilenet_v3,
        vit,
        frozen_backbone,
        norms_in_inference_mode,
    )
}


def kernels_to_replace(model, cls):
    return [
        layer
        for layer in model._flatten_layers()
        if type(layer) in cls and getattr(layer, "groups", 1) == 1
    ]


def with_low_rank(model):
    """Give kernels a low rank."""
    for layer in kernels_to_replace(model, (layers.Dense, layers.Conv2D)):
        kernel = to_numpy(layer.kernel.value)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        low = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
        layer.kernel.assign(low.reshape(kernel.shape))
    return lambda copy: factorize(copy, rank=RANK)


def with_separable_kernels(model):
    random = np.random.default_rng(0)
    for layer in kernels_to_replace(model, (layers.Conv2D,)):
        *window, inputs, outputs = layer.kernel.shape
        depthwise = random.normal(size=(*window, inputs, 1)) / 3
        pointwise = random.normal(size=(inputs, outputs)) / inputs**0.5
        layer.kernel.assign(depthwise * pointwise)
    return separate


EXACT = {"factorize": with_low_rank, "separate": with_separable_kernels}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("function", EXACT)
def test_factors_of_kernels_compute_the_same(function, model):
    model = reference.with_distinct_weights(MODELS[model]())
    surgery = EXACT[function](model)
    x = reference.inputs_for(model)
    reference.calibrate(model, x)
    copy = surgery(model)
    assert len(copy.weights) > len(model.weights) or function == "separate"
    assert copy.count_params() < model.count_params()
    expected = reference.outputs_of(model, x)
    assert (
        reference.distance(reference.outputs_of(copy, x), expected) < TOLERANCE
    )


@pytest.mark.parametrize("model", MODELS)
def test_fewer_channels_compute_the_same_as_masked_ones(model):
    def prune(model):
        return prune_channels(model, 0.5, importance=reference.scores)

    difference, _ = reference.largest_difference(MODELS[model](), prune)
    assert difference < TOLERANCE


SURGERY = {
    "prune_channels": lambda model: prune_channels(model, 0.5),
    "factorize": lambda model: factorize(model, rank=RANK),
    "separate": separate,
}


@pytest.mark.parametrize("function", SURGERY)
def test_a_frozen_backbone_stays_frozen(function):
    copy = SURGERY[function](frozen_backbone())
    backbone = copy.get_layer("backbone")
    assert not any(layer.trainable for layer in backbone.layers[1:])
    assert copy.get_layer("neck").trainable
    before = [to_numpy(w.value).copy() for w in backbone.weights]
    head = to_numpy(copy.get_layer("logits").kernel.value).copy()
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
    copy.compile("sgd", "mse")
    copy.fit(x, np.ones((8, 5)), verbose=0)
    for old, weight in zip(before, backbone.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(weight.value), old)
    assert not np.array_equal(head, to_numpy(copy.get_layer("logits").kernel))


@pytest.mark.parametrize("training", [None, False, True])
@pytest.mark.parametrize("function", EXACT)
def test_norms_called_in_inference_mode_do_what_they_did(function, training):
    # Different modes in the graph and in a call are not tested.
    model = reference.with_distinct_weights(norms_in_inference_mode())
    copy = EXACT[function](model)(model)
    x = np.random.default_rng(0).normal(3, 2, size=(8, 8, 8, 3))
    expected = to_numpy(model(x, training=training))
    result = to_numpy(copy(x, training=training))
    assert reference.distance([result], [expected]) < TOLERANCE
    moved = [
        [to_numpy(w.value) for w in m.weights if w.name.startswith("moving")]
        for m in (model, copy)
    ]
    assert len(moved[0]) == 4
    for old, new in zip(*moved, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5)


@pytest.mark.parametrize("function", SURGERY)
def test_dropout_that_is_always_on_stays_on(function):
    inputs = keras.Input((8, 8, 3))
    x = conv(8, "stem", activation="relu")(inputs)
    x = layers.Dropout(0.5, seed=1)(x, training=True)
    x = conv(16, "body")(x)
    outputs = layers.Dropout(0.25, seed=2, name="last")(x, training=True)
    copy = SURGERY[function](keras.Model(inputs, outputs))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
    body = keras.Model(copy.input, [copy.get_layer("last").input, copy.output])
    seen = []
    for _ in range(2):
        before, after = (
            to_numpy(y) for y in body(keras.ops.convert_to_tensor(x))
        )
        dropped = after == 0
        assert np.mean(dropped) == pytest.approx(0.25, abs=0.03)
        np.testing.assert_allclose(
            after[~dropped], before[~dropped] / 0.75, rtol=1e-6
        )
        seen.append(before)
    # The dropout before it is active too.
    assert np.abs(seen[0] - seen[1]).max() > 1e-3
