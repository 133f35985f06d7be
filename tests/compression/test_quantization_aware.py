"""Training for int8: what is rounded, how, and where."""

import keras
import numpy as np
import pytest
from common import Subclassed
from common import cnn
from common import images
from common import mlp
from common import to_numpy
from common import value_and_gradient
from common import vectors
from common import weights_of
from common import with_tied_layers
from keras import layers
from keras import ops

from keras_distill.compression import quantize_aware
from keras_distill.compression.quantized_layers import FakeQuantization
from keras_distill.compression.quantized_layers import QuantizedConv2D
from keras_distill.compression.quantized_layers import QuantizedDense
from keras_distill.compression.quantized_layers import QuantizedDepthwiseConv2D


def residual_network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255, name="scale")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.ReLU(name="stem_relu")(x)
    y = layers.Conv2D(4, 3, padding="same", name="conv", use_bias=False)(x)
    y = layers.BatchNormalization(name="norm")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.ReLU(6.0, name="relu")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Concatenate(name="both")([x, x])
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(6, activation="silu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def names_of(model):
    return [layer.name for layer in model.layers]


def test_the_range_is_an_average_of_batches():
    layer = FakeQuantization(momentum=0.75)
    batches = np.random.default_rng(0).normal(size=(9, 20)).astype("float32")
    batches[3] = 5 + np.abs(batches[3])  # its range begins at zero
    low = np.minimum(batches.min(axis=1), 0)
    high = np.maximum(batches.max(axis=1), 0)
    minimum, maximum = low[:4].mean(), high[:4].mean()
    for batch in batches[:4]:
        layer(batch, training=True)
    for batch, lowest, highest in zip(batches[4:], low[4:], high[4:]):
        layer(batch, training=True)
        minimum += 0.25 * (lowest - minimum)
        maximum += 0.25 * (highest - maximum)
    np.testing.assert_allclose(
        layer.tracked_range(), (minimum, maximum), rtol=1e-5
    )
    layer(100 * batches[0])
    np.testing.assert_allclose(
        layer.tracked_range(), (minimum, maximum), rtol=1e-5
    )


def test_activations_are_rounded_to_256_numbers():
    layer = FakeQuantization(fixed_range=(-1.0, 3.0))
    x = np.random.default_rng(0).uniform(-2, 4, 9999).astype("float32")
    scale = 4 / 255
    zero = np.round(1 / scale)
    expected = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    answer = to_numpy(layer(x))
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert len(np.unique(answer)) == 256 and 0 in answer
    # Straight through, inside of the range.
    _, gradient = value_and_gradient(lambda x: ops.sum(layer(x)), x)
    inside = (x > -0.99) & (x < 2.99)
    assert np.all(gradient[inside] == 1)
    assert np.all(gradient[(x < -1.01) | (x > 3.01)] == 0)


def test_nothing_is_rounded_before_a_range_is_known():
    layer = FakeQuantization()
    x = np.linspace(-2, 4, 50).astype("float32")
    np.testing.assert_array_equal(to_numpy(layer(x)), x)
    zeros = np.zeros(5, "float32")
    np.testing.assert_array_equal(to_numpy(layer(zeros, training=True)), zeros)
    other = FakeQuantization(name="other")
    other(x)
    with pytest.raises(ValueError, match=r"'other' has seen no batch.*`fit"):
        other.tracked_range()


@pytest.mark.parametrize(
    "layer, window",
    [
        (QuantizedDense(4), (0,)),
        (QuantizedConv2D(4, 3), (0, 1, 2)),
        (QuantizedDepthwiseConv2D(3, depth_multiplier=2), (0, 1)),
    ],
    ids=["dense", "conv", "depthwise"],
)
def test_kernels_are_rounded_by_output_channel(layer, window):
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
    layer(x)
    kernel = to_numpy(layer.kernel)
    scale = np.abs(kernel).max(axis=window, keepdims=True) / 127
    rounded = np.round(kernel / scale) * scale
    np.testing.assert_allclose(
        to_numpy(layer.rounded_kernel()), rounded, atol=1e-6
    )
    # What the plain layer computes with such a kernel.
    plain = type(layer).__mro__[2].from_config(layer.get_config())
    plain(x)
    plain.set_weights([rounded, layer.get_weights()[1] + 0.5])
    layer.set_weights([kernel, plain.get_weights()[1]])
    np.testing.assert_allclose(
        to_numpy(layer(x)), to_numpy(plain(x)), atol=1e-5
    )


def test_where_ranges_are():
    copy = quantize_aware(residual_network())
    assert names_of(copy)[1:] == [
        "scale",  # in float32, so no range before it
        "scale_range",
        "stem",
        "stem_relu",  # one operation with the convolution
        "stem_relu_range",
        "conv",
        "conv_range",
        "add",
        "relu",
        "relu_range",
        "pool",
        "both",
        "both_range",
        "flat",
        "hidden",
        "hidden_range",
        "hidden_activation",
        "hidden_activation_range",
        "logits",
        "logits_range",
    ]
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.ZeroPadding2D(),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.Conv2D(4, 1, name="second"),
        ],
        name="inner",
    )
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Softmax(name="top")(inner(inputs)))
    copy = quantize_aware(model)
    assert names_of(copy)[1:] == ["inner", "top"]
    assert names_of(copy.get_layer("inner"))[1:] == [
        "first_input_range",
        "first",
        "first_range",
        "second",
        "second_range",
    ]


def test_the_copy_computes_what_the_model_does():
    model = residual_network()
    x, _ = images(channels=3)
    for _ in range(5):
        model(x, training=True)  # for the normalization to have statistics
    before = weights_of(model)
    copy = quantize_aware(model)
    copy(x, training=True)
    expected = to_numpy(model(x, training=False))
    answer = to_numpy(copy(x, training=False))
    assert not np.array_equal(answer, expected)
    assert np.abs(answer - expected).max() < 0.03 * np.ptp(expected)
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_separable_convolutions_are_two():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SeparableConv2D(
                4, 3, 2, depth_multiplier=2, activation="relu", name="both"
            ),
        ]
    )
    model.layers[0].bias.assign([0.1, 0.2, 0.3, 0.4])
    copy = quantize_aware(model)
    assert names_of(copy) == [
        "both_input_range",
        "both_depthwise",
        "both_depthwise_range",
        "both",
        "both_range",
    ]
    x, _ = images(channels=3)
    expected, answer = to_numpy(model(x)), to_numpy(copy(x))
    assert np.abs(answer - expected).max() < 0.03 * np.ptp(expected)


def test_normalizations_that_stay_do_not_learn():
    model = keras.Sequential(
        [keras.Input((6,)), layers.BatchNormalization(), layers.Dense(4)]
    )
    copy = quantize_aware(model)
    assert not copy.layers[0].trainable and model.layers[0].trainable
    before = weights_of(copy.layers[0])
    copy(vectors()[0], training=True)
    for old, new in zip(before, weights_of(copy.layers[0]), strict=True):
        np.testing.assert_array_equal(old, new)


# Under a Distiller: `test_a_student_that_learned_in_int8`, with the file.
def test_training_moves_weights_and_ranges(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = cnn(8)
    keras.config.set_dtype_policy("float32")
    copy = quantize_aware(model)
    x, y = images()
    x = x / 255
    before = [np.array(to_numpy(weight)) for weight in copy.weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    copy.compile("sgd", loss)
    copy.fit(x, y, batch_size=4, verbose=0)
    for old, new in zip(before, copy.weights, strict=True):
        # After a ReLU, and of these images, the smallest value is zero.
        stays = new.name == "minimum" and not to_numpy(new)
        assert stays or not np.array_equal(old, to_numpy(new)), new.path
    assert to_numpy(copy.layers[0].steps) == 4
    assert all(layer.compute_dtype == "float32" for layer in copy.layers)
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(copy(x)))


def called_twice():
    relu = layers.ReLU(name="twice")
    inputs = keras.Input((4,))
    return keras.Model(inputs, relu(layers.Dense(4)(relu(inputs))))


def in_int8():
    model = mlp()
    model.layers[0].quantize("int8")
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: keras.Sequential([layers.Dense(4)]), "needs a functional"),
        (Subclassed, "`quantize_aware` needs a functional.*Subclassed"),
        (with_tied_layers, "can't part.*'dense' and 'tied'.*dense/kernel'"),
        (called_twice, "called once.*'twice', called more than once"),
        (in_int8, "plain kernels.*which is quantized or has LoRA"),
        (lambda: quantize_aware(mlp()), "plain kernels.*_range', which is qu"),
    ],
    ids=["no graph", "subclassed", "tied", "shared", "quantized", "twice"],
)
def test_refused_models(make, message):
    with pytest.raises(ValueError, match=message):
        quantize_aware(make())


def test_refused_arguments():
    with pytest.raises(ValueError, match=r"`momentum`.* 0 to 1.*momentum=2"):
        quantize_aware(mlp(), momentum=2)
