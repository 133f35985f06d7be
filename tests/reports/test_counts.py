"""Counts of work and memory against hand-made numbers and other ways to count.

With ones as inputs and in kernels, the sum of all outputs is the number of
products that were summed.
"""

import keras
import numpy as np
import pytest
from common import to_numpy
from keras import layers
from keras import ops

from keras_distill._graphs._inference import infer
from keras_distill._graphs._macs import Macs
from keras_distill._graphs._macs import count_macs
from keras_distill.reports._costs import energies
from keras_distill.reports._costs import peak_activation_bytes

# Costs are counted on symbolic tensors.
pytestmark = pytest.mark.one_backend("torch")


def macs_of(model):
    return count_macs(infer(model).calls)


def peak_of(model):
    return peak_activation_bytes(infer(model))


LINEAR = {
    "dense": ((6,), layers.Dense(4)),
    "dense_in_time": ((5, 6), layers.Dense(4)),
    "einsum": ((5, 6), layers.EinsumDense("abc,cde->abde", (None, 3, 2))),
    "einsum_ellipsis": ((5, 6), layers.EinsumDense("...x,xy->...y", 4)),
    "einsum_over_time": ((5, 6), layers.EinsumDense("abc,bd->adc", (4, 6))),
    "conv_1d": ((9, 3), layers.Conv1D(4, 3, dilation_rate=2)),
    "conv_2d": ((9, 8, 3), layers.Conv2D(4, (3, 2), strides=2)),
    "conv_3d": ((5, 5, 4, 3), layers.Conv3D(4, 2)),
    "grouped": ((9, 8, 4), layers.Conv2D(6, 3, groups=2)),
    "transposed_1d": ((5, 3), layers.Conv1DTranspose(4, 3, strides=2)),
    "transposed_2d": ((5, 4, 3), layers.Conv2DTranspose(4, 3, strides=2)),
    "transposed_3d": ((3, 3, 4, 3), layers.Conv3DTranspose(4, 2)),
    "depthwise_1d": ((9, 3), layers.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise_2d": ((9, 8, 3), layers.DepthwiseConv2D(3, depth_multiplier=2)),
}


@pytest.mark.parametrize("case", LINEAR)
def test_macs_of_linear_layers_are_the_sum_over_ones(case):
    shape, layer = LINEAR[case]
    layer = layer.from_config(layer.get_config())
    layer.use_bias = False
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.ones(layer.kernel.shape)])
    outputs = to_numpy(model(np.ones((1, *shape), "float32")))
    expected = int(outputs.sum())
    assert macs_of(model) == Macs(expected, expected, [])


def test_macs_of_separable_convolutions():
    inputs = keras.Input((9, 8, 3))
    outputs = layers.SeparableConv2D(5, 3, depth_multiplier=2)(inputs)
    # 7 x 6 positions; each of 3 x 2 channels reads 9 values, each of 5 reads 6.
    assert macs_of(keras.Model(inputs, outputs)).all == 42 * (6 * 9 + 5 * 6)
    inputs = keras.Input((9, 3))
    outputs = layers.SeparableConv1D(5, 3)(inputs)
    assert macs_of(keras.Model(inputs, outputs)).all == 7 * (3 * 3 + 5 * 3)


def test_macs_in_channels_first():
    inputs = keras.Input((3, 9, 8))
    conv = layers.Conv2D(4, 3, data_format="channels_first")
    outputs = layers.Conv2DTranspose(2, 3, data_format="channels_first")(
        conv(inputs)
    )
    expected = 42 * 9 * 3 * 4 + 42 * 9 * 4 * 2
    assert macs_of(keras.Model(inputs, outputs)).all == expected


def test_macs_of_attention():
    query, value = keras.Input((5, 6)), keras.Input((7, 8))
    heads = layers.MultiHeadAttention(3, key_dim=4, value_dim=2)
    model = keras.Model([query, value], heads(query, value=value))
    projections = 5 * 6 * 12 + 7 * 8 * 12 + 7 * 8 * 6 + 5 * 6 * 6
    scores = 3 * 5 * 7 * (4 + 2)
    assert macs_of(model).all == projections + scores
    plain = layers.Attention()([query, layers.Dense(6)(value)])
    model = keras.Model([query, value], plain)
    assert macs_of(model).all == 7 * 8 * 6 + 5 * 7 * (6 + 6)


def test_macs_of_recurrent_layers():
    inputs = keras.Input((5, 6))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(inputs)
    x = layers.GRU(3, return_sequences=True)(x)
    model = keras.Model(inputs, layers.SimpleRNN(2)(x))
    both = 2 * 5 * 4 * 4 * (6 + 4)
    assert macs_of(model).all == both + 5 * 3 * 3 * (8 + 3) + 5 * 2 * (3 + 2)


def test_macs_of_layers_and_models_applied_to_each_step():
    inputs = keras.Input((5, 8, 8, 3))
    network = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    x = layers.TimeDistributed(network)(inputs)
    x = layers.TimeDistributed(layers.Dense(7))(x)
    model = keras.Model(inputs, x)
    of_a_step = 36 * 9 * 3 * 4 + 4 * 2 + 2 * 7
    assert macs_of(model).all == 5 * of_a_step
    x = layers.TimeDistributed(Unknown(name="own"), name="each")(x)
    model = keras.Model(inputs, x)
    assert macs_of(model).uncounted == ["each (TimeDistributed)"]


@pytest.mark.parametrize("tied", [True, False])
def test_macs_of_an_embedding_that_is_also_the_last_layer(tied):
    inputs = keras.Input((5,), dtype="int32")
    embedding = layers.ReversibleEmbedding(11, 3, tie_weights=tied)
    x = layers.Dense(3)(embedding(inputs))
    model = keras.Model(inputs, embedding(x, reverse=True))
    assert macs_of(model).all == 5 * (3 * 3 + 3 * 11)


def test_macs_of_products_of_tensors():
    first, second = keras.Input((5, 6)), keras.Input((6, 4))
    for product in (
        ops.matmul(first, second),
        layers.Dot((2, 1))([first, second]),
    ):
        assert macs_of(keras.Model([first, second], product)).all == 5 * 6 * 4


def test_what_works_entry_by_entry_has_no_macs():
    inputs = keras.Input((8, 8, 3))
    x = layers.LayerNormalization()(layers.BatchNormalization()(inputs))
    x = layers.PReLU()(x) * 2.0 + inputs
    x = layers.MaxPooling2D()(x)
    assert macs_of(keras.Model(inputs, x)) == Macs(0, 0, [])


def test_zeros_are_counted_apart():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(2, 3, use_bias=False)]
    )
    kernel = np.ones((3, 3, 1, 2), "float32")
    kernel[:, :, :, 0] = 0
    model.set_weights([kernel])
    assert macs_of(model) == Macs(4 * 18, 4 * 9, [])


class Unknown(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, inputs):
        return inputs * self.scale

    def compute_output_shape(self, shape):
        return shape


def test_layers_that_cannot_be_counted_are_named():
    inputs = keras.Input((4,))
    x = Unknown(name="own")(layers.Dense(4)(inputs))
    x = ops.einsum("ab,ac->abc", x, inputs)
    macs = macs_of(keras.Model(inputs, x))
    assert macs.all is None and macs.nonzero is None
    assert macs.uncounted[0] == "own (Unknown)"
    assert macs.uncounted[1].endswith("(Einsum)")


def test_every_call_counts_also_inside_other_models():
    inner = keras.Sequential([keras.Input((None, 3)), layers.Conv1D(3, 2)])
    inputs = keras.Input((9, 3))
    model = keras.Model(inputs, inner(inner(inputs)))
    # 8 positions in the first call, 7 in the second.
    assert macs_of(model).all == (8 + 7) * 2 * 3 * 3
    flat = keras.Model(inputs, inner.layers[0](inner.layers[0](inputs)))
    assert macs_of(flat) == macs_of(model)
    assert peak_of(flat) == peak_of(model) == 4 * 3 * (9 + 8)


@pytest.mark.parametrize(
    "name, millions", [("MobileNetV2", 300.774272), ("ResNet50", 3857.973248)]
)
def test_macs_of_published_networks(name, millions):
    """Published: 300 million, and 3.8 billion without the shortcuts."""
    model = getattr(keras.applications, name)(weights=None)
    assert macs_of(model).all == round(1e6 * millions)


def test_peak_of_a_residual_block():
    inputs = keras.Input((8, 8, 2))  # 128 values
    x = layers.Conv2D(6, 1)(inputs)  # 384, beside the inputs
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(2, 1)(x)  # 128 more
    x = layers.Add()([x, inputs])
    assert peak_of(keras.Model(inputs, x)) == 4 * (128 + 384 + 128)


def test_only_the_last_reader_writes_over_its_input():
    inputs = keras.Input((10,))
    x = layers.Dense(20)(inputs)
    once = keras.Model(inputs, layers.ReLU()(x))
    assert peak_of(once) == 4 * 30
    twice = keras.Model(inputs, layers.Add()([layers.ReLU()(x), x]))
    assert peak_of(twice) == 4 * 60
    both = keras.Model(inputs, [layers.ReLU()(x), x])
    assert peak_of(both) == 4 * 40
    softmax = keras.Model(inputs, layers.Activation("softmax")(x))
    assert peak_of(softmax) == 4 * 40


def random_graph(seed):
    """Layers that read earlier layers, some of them much earlier."""
    generator = np.random.default_rng(seed)
    inputs = keras.Input((3, 1))
    tensors = [inputs]
    for _ in range(12):
        chosen = generator.choice(len(tensors), min(2, len(tensors)), False)
        if len(chosen) == 2 and generator.random() < 0.5:
            made = layers.Concatenate(1)([tensors[i] for i in chosen])
        else:
            longer = layers.ZeroPadding1D(int(generator.integers(1, 9)))
            made = longer(tensors[chosen[0]])
        tensors.append(made)
    return keras.Model(inputs, [tensors[-1], tensors[-2]])


@pytest.mark.parametrize("seed", range(10))
def test_peak_is_that_of_looking_at_every_moment(seed):
    inference = infer(random_graph(seed))
    _, calls, outputs = inference
    tensors = {id(t): t for c in calls for t in (*c.inputs, *c.outputs)}
    made = {id(t): i for i, call in enumerate(calls) for t in call.outputs}
    peak = 0
    for moment in range(len(calls)):
        needed = {id(t) for call in calls[moment:] for t in call.inputs}
        needed |= {id(t) for t in (*outputs, *calls[moment].outputs)}
        sizes = [
            tensors[t].shape[1] for t in needed if made.get(t, -1) <= moment
        ]
        peak = max(peak, 4 * sum(sizes))
    assert peak_activation_bytes(inference) == peak


def test_energy_of_one_dense_layer():
    model = keras.Sequential(
        [keras.Input((100,)), layers.Dense(10, "relu"), layers.ReLU()]
    )
    calls = infer(model).calls
    found = energies(1010, Macs(1000, 200, []), 400, calls)
    # 110 activations move. The last layer works in place.
    float32 = 1000 * (3.7 + 0.9) + 1010 * 640 + 110 * 5
    int8 = 1000 * (0.2 + 0.1) + 1010 * 640 / 4 + 110 * 5 / 4
    packed = 200 * (3.7 + 0.9) + 100 * 640 + 110 * 5
    expected = {"float32": float32, "int8": int8, "packed": packed}
    assert found == pytest.approx({k: v / 1e6 for k, v in expected.items()})
    unknown = energies(1010, Macs(None, None, ["x"]), 400, calls)
    assert unknown == dict.fromkeys(expected)
