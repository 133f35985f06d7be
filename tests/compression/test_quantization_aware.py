"""Quantization-aware training: what is rounded, how, and where."""

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
from litert_files import interpreter_of
from litert_files import outputs_of_file
from litert_files import tensorflow_only

from keras_distill.compression import export_litert
from keras_distill.compression import quantize_aware
from keras_distill.compression.litert._file_contents import operations_in_floats
from keras_distill.compression.litert._quantize_aware import with_constants
from keras_distill.compression.litert._quantized_blocks import (
    QuantizedMultiHeadAttention,
)
from keras_distill.compression.litert._quantized_layers import FakeQuantization
from keras_distill.compression.litert._quantized_layers import QuantizedConv2D
from keras_distill.compression.litert._quantized_layers import QuantizedDense
from keras_distill.compression.litert._quantized_layers import (
    QuantizedDepthwiseConv2D,
)

pytestmark = pytest.mark.any_backend


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
    outputs = to_numpy(layer(x))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert len(np.unique(outputs)) == 256 and 0 in outputs
    # Straight-through gradient inside the range.
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
    with pytest.raises(ValueError, match=r"'other' has no range.*`fit"):
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
    # The plain layer with the rounded kernel.
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
    outputs = to_numpy(copy(x, training=False))
    assert not np.array_equal(outputs, expected)
    assert np.abs(outputs - expected).max() < 0.03 * np.ptp(expected)
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
    expected, outputs = to_numpy(model(x)), to_numpy(copy(x))
    assert np.abs(outputs - expected).max() < 0.03 * np.ptp(expected)


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


def transformer(blocks=1, width=16):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 2, strides=2, name="patches")(inputs)
    x = layers.Reshape((16, width))(x)
    for block in range(blocks):
        y = layers.LayerNormalization(name=f"first_{block}")(x)
        heads = layers.MultiHeadAttention(4, width // 4, name=f"heads_{block}")
        x = layers.Add()([x, heads(y, y)])
        y = layers.LayerNormalization(center=False, name=f"next_{block}")(x)
        y = layers.EinsumDense("abc,cd->abd", (16, 2 * width), bias_axes="d")(y)
        y = layers.Dense(width)(layers.Activation("gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def with_other_weights(model):
    """Set biases, scales and offsets to other values than zero and one."""
    generator = np.random.default_rng(0)
    model.set_weights(
        [w + generator.normal(0, 0.1, w.shape) for w in model.get_weights()]
    )
    return model


def test_a_transformer_computes_what_it_did(tmp_path):
    model = with_other_weights(transformer())
    x, _ = images()
    x = x / 255
    copy = quantize_aware(model)
    rounded = {name for name in names_of(copy) if name.endswith("_range")}
    assert {"heads_0_range", "first_0_range", "einsum_dense_range"} <= rounded
    copy(x, training=True)
    expected = to_numpy(model(x, training=False))
    outputs = to_numpy(copy(x, training=False))
    assert not np.array_equal(outputs, expected)
    assert np.abs(outputs - expected).max() < 0.03 * np.ptp(expected)
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x, training=False)), outputs)
    constant = with_constants(copy)
    np.testing.assert_allclose(
        to_numpy(constant(x, training=False)), outputs, atol=1e-4
    )


def test_kernels_and_ranges_of_attention_are_rounded():
    """Compare with NumPy in float64."""
    layer = QuantizedMultiHeadAttention(num_heads=2, key_dim=3, value_dim=4)
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    layer(x, x, training=True)
    outputs = to_numpy(layer(x, x, training=False)).astype("float64")

    def rounded(values, name):
        low, high = layer.ranges[name].tracked_range()
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        steps = np.clip(np.round(values / scale) + zero, 0, 255)
        return (steps - zero) * scale

    def projected(equation, values, dense, axes):
        kernel = to_numpy(dense.kernel).astype("float64")
        scale = np.abs(kernel).max(axis=axes, keepdims=True) / 127
        kernel = np.round(kernel / scale) * scale
        return np.einsum(equation, values, kernel) + to_numpy(dense.bias)

    query, key, value = (
        rounded(projected("btc,cnh->btnh", x, getattr(layer, dense), 0), name)
        for name, dense in (
            ("query", "query_dense"),
            ("key", "key_dense"),
            ("value", "value_dense"),
        )
    )
    scores = rounded(np.einsum("bqnh,bknh->bnqk", query, key), "scores")
    scores = rounded(scores / np.sqrt(3), "scaled")
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    context = rounded(np.einsum("bnqk,bknh->bqnh", weights, value), "context")
    expected = projected("bqnh,nhc->bqc", context, layer.output_dense, (0, 1))
    # One step of a range, for sums that lie between two values.
    assert np.abs(outputs - expected).max() < 0.02 * np.ptp(expected)
    assert np.abs(outputs - expected).mean() < 0.002 * np.ptp(expected)


def test_masks_count_in_rounded_attention():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(inputs)
    x = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(3)(x))
    tokens = np.array([[3, 4, 5, 0, 0], [1, 2, 3, 4, 5]])
    copy = quantize_aware(model)
    copy(tokens, training=True)
    expected = to_numpy(model(tokens))[tokens > 0]
    outputs = to_numpy(copy(tokens, training=False))[tokens > 0]
    assert np.abs(outputs - expected).max() < 0.05 * np.ptp(expected)


def test_what_has_no_ranges_inside_stays_as_it_is():
    query = keras.Input((3, 4, 8))
    heads = layers.MultiHeadAttention(2, 4, attention_axes=(1, 2), name="in_2d")
    x = heads(query, query)
    x = layers.LayerNormalization(axis=(1, 2), name="over_places")(x)
    x = layers.EinsumDense("abcd,bde->abce", (3, 4, 2), name="each")(x)
    copy = quantize_aware(keras.Model(query, x))
    for name, kind in (
        ("in_2d", layers.MultiHeadAttention),
        ("over_places", layers.LayerNormalization),
        ("each", layers.EinsumDense),
    ):
        assert type(copy.get_layer(name)) is kind


@tensorflow_only
def test_the_file_of_a_transformer_is_in_int8(tmp_path):
    model = quantize_aware(with_other_weights(transformer(blocks=2)))
    x, _ = images(count=64)
    x = x / 255
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    model.fit(x, np.zeros((64, 5)), verbose=0)
    with pytest.warns(UserWarning, match=r"RSQRT \(first_0.*8 bits cannot rep"):
        export_litert(model, tmp_path / "model", "int8")
    (outputs,) = outputs_of_file(tmp_path / "model", x)
    expected = to_numpy(model(x, training=False))
    assert np.abs(outputs - expected).mean() < 0.02 * np.ptp(expected)
    floats, _ = operations_in_floats((tmp_path / "model").read_bytes())
    # The operations on the variances of four normalizations.
    assert {kind for kind, _ in floats} == {
        "ADD",
        "MEAN",
        "MUL",
        "RSQRT",
        "SQUARE",
    }
    assert len(floats) == 4 * 5, floats
    dtypes = [
        tensor["dtype"] is np.float32
        for tensor in interpreter_of(tmp_path / "model").get_tensor_details()
    ]
    assert sum(dtypes) < 0.3 * len(dtypes)


# `test_a_student_that_learned_in_int8` trains with a Distiller.
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
        # The minimum is zero after a ReLU, and in these images.
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
        (lambda: keras.Sequential([layers.Dense(4)]), "requires a functional"),
        (Subclassed, "`quantize_aware` requires a functional.*Subclassed"),
        (
            with_tied_layers,
            "cannot separate.*'dense' and 'tied'.*dense/kernel'",
        ),
        (called_twice, "called once.*'twice', called more than once"),
        (in_int8, "float kernels.*which is quantized or has LoRA"),
        (lambda: quantize_aware(mlp()), "float kernels.*_range', which is qu"),
    ],
    ids=["no graph", "subclassed", "tied", "shared", "quantized", "twice"],
)
def test_refused_models(make, message):
    with pytest.raises(ValueError, match=message):
        quantize_aware(make())


def test_refused_arguments():
    with pytest.raises(ValueError, match=r"`momentum`.* 0 to 1.*momentum=2"):
        quantize_aware(mlp(), momentum=2)
