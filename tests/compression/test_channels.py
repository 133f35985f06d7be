"""A pruned model computes the same as the model with masked channels."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import Subclassed
from common import in_float64
from common import to_numpy
from common import weights_of
from common import with_tied_layers
from keras import layers
from keras import ops
from reference import networks
from reference import pruning as reference

from keras_distill.compression import prune_channels

pytestmark = pytest.mark.any_backend

# In float64, only sums in another order differ. But PyTorch computes means in
# float32, and JAX divisions.
TOLERANCE = 1e-9 if BACKEND == "tensorflow" else 1e-5

IMAGE = (6, 6, 3)


def halve(model, **kwargs):
    return prune_channels(model, 0.5, importance=reference.scores, **kwargs)


@pytest.fixture(autouse=True)
def precision():
    with in_float64():
        yield


def conv(width, name, window=3, **kwargs):
    return layers.Conv2D(width, window, padding="same", name=name, **kwargs)


def block(x, width, name):
    x = layers.BatchNormalization(name=f"{name}_bn")(conv(width, name)(x))
    return layers.ReLU()(x)


def top(x):
    return layers.Dense(3, name="top")(layers.GlobalAveragePooling2D()(x))


GRAPHS = {}


def graph(shape, **widths):
    """Register a model by its function name, with the expected widths."""

    def note(function):
        def make():
            inputs = keras.Input(shape)
            return keras.Model(inputs, function(inputs))

        GRAPHS[function.__name__] = (make, widths)

    return note


@graph((5,), a=4, b=3, top=2)
def dense(x):
    x = layers.Dense(8, "relu", name="a")(x)
    return layers.Dense(2, name="top")(layers.Dense(6, "gelu", name="b")(x))


@graph((5,), a=5)
def an_odd_width(x):
    return layers.Dense(2)(layers.Dense(9, name="a")(x))


@graph(IMAGE, a=4, b=4, top=3)
def convolutions(x):
    return top(block(block(x, 8, "a"), 8, "b"))


@graph(IMAGE, a=4, b=3, c=4, d=4)
def residual(x):
    x = block(x, 8, "a")
    y = conv(8, "c")(block(x, 6, "b"))
    x = layers.Add()([x, y, conv(8, "d", 1)(x)])
    return top(layers.ReLU()(x))


@graph(IMAGE, a=4, b=2, c=4)
def squeeze_and_excite(x):
    x = block(x, 8, "a")
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Reshape((1, 1, 8))(y)
    y = conv(4, "b", 1, activation="relu")(y)
    y = conv(8, "c", 1, activation="hard_sigmoid")(y)
    return top(layers.Multiply()([x, y]))


@graph(IMAGE, a=4, b=1, c=4)
def squeeze_and_excite_by_rank(x):
    x = block(x, 8, "a")
    y = layers.GlobalMaxPooling2D(keepdims=True)(x)
    y = layers.Dense(2, "swish", name="b")(layers.Flatten()(y))
    return top(layers.Multiply()([layers.Dense(8, "tanh", name="c")(y), x]))


@graph(IMAGE, a=4, mask=1)
def attention_over_space(x):
    x = block(x, 8, "a")
    return top(layers.Multiply()([x, conv(1, "mask", activation="sigmoid")(x)]))


@graph(IMAGE, a=2, b=3, c=4)
def concatenated(x):
    a, b = block(x, 4, "a"), block(x, 6, "b")
    x = layers.Concatenate()([a, x, b, a])
    x = layers.BatchNormalization()(x)
    return top(block(x, 8, "c"))


@graph(IMAGE, a=2, b=2, c=4)
def concatenated_and_summed(x):
    x = layers.Concatenate()([block(x, 4, "a"), block(x, 4, "b")])
    return top(layers.Average()([x, conv(8, "c")(x)]))


@graph(IMAGE, a=2, b=5)
def summed_with_some_that_stay(x):
    y = layers.Concatenate()([block(x, 4, "a"), x])
    # Three of seven channels are added to the input, and are kept.
    return top(layers.Maximum()([y, conv(7, "b")(y)]))


@graph(IMAGE, a=4, b=4)
def concatenated_in_space(x):
    x = layers.Concatenate(axis=1)([block(x, 8, "a"), block(x, 8, "b")])
    return top(x)


@graph(IMAGE, a=4, top=3)
def flattened(x):
    x = layers.Flatten()(block(x, 8, "a"))
    return layers.Dense(3, name="top")(layers.BatchNormalization()(x))


@graph(IMAGE, a=4, b=4)
def depthwise(x):
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(block(x, 8, "a"))
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, activation="relu")(x)
    return top(conv(8, "b")(x))


@graph(IMAGE, a=4, b=3)
def separable(x):
    x = layers.SeparableConv2D(8, 3, name="a")(x)
    return top(layers.SeparableConv2D(6, 3, depth_multiplier=3, name="b")(x))


@graph(IMAGE, a=4, b=3)
def transposed(x):
    x = layers.Conv2DTranspose(8, 3, strides=2, name="a")(x)
    x = layers.BatchNormalization()(x)
    return top(layers.Conv2DTranspose(6, 2, name="b", use_bias=False)(x))


@graph((9, 3), a=4, b=3)
def one_dimension(x):
    x = layers.Conv1D(8, 3, padding="causal", name="a")(x)
    x = layers.UpSampling1D()(layers.ZeroPadding1D()(x))
    x = layers.MaxPooling1D()(layers.Cropping1D()(x))
    x = layers.SeparableConv1D(6, 3, name="b")(layers.DepthwiseConv1D(2)(x))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


@graph((5, 5, 5, 2), a=4)
def three_dimensions(x):
    x = layers.ZeroPadding3D()(layers.Conv3D(8, 2, name="a")(x))
    return layers.Dense(2)(layers.GlobalMaxPooling3D()(x))


@graph(IMAGE, a=4, b=3)
def padded_and_cropped(x):
    x = layers.ZeroPadding2D()(block(x, 8, "a"))
    x = layers.Cropping2D(((1, 0), (0, 1)))(layers.UpSampling2D()(x))
    x = layers.SpatialDropout2D(0.2)(layers.AveragePooling2D(2)(x))
    return top(layers.Rescaling(2.0, -1.0)(conv(6, "b")(x)))


@graph(IMAGE, a=4, b=4)
def slopes(x):
    x = layers.PReLU()(conv(8, "a")(x))
    return top(layers.PReLU(shared_axes=[1, 2])(conv(8, "b")(x)))


@graph(IMAGE, a=8, b=4)
def slopes_shared_by_channels(x):
    x = layers.PReLU(shared_axes=[3])(conv(8, "b")(x))
    return top(layers.Softmax()(conv(8, "a")(x)))


@graph(IMAGE, a=4, b=3, c=5)
def rearranged(x):
    x = layers.Reshape((36, 8))(block(x, 8, "a"))
    x = layers.Permute((2, 1))(x)
    x = layers.Permute((2, 1))(x)
    x = layers.GlobalAveragePooling1D()(layers.Dense(6, name="b")(x))
    x = layers.Conv1D(10, 2, name="c")(layers.RepeatVector(3)(x))
    return layers.Dense(2)(layers.Flatten()(x))


@graph(IMAGE, a=8, b=8)
def split_by_reshape(x):
    x = layers.Reshape((6, 6, 2, 4))(conv(8, "a")(x))
    x = layers.Reshape((6, 6, 8))(x)
    # Dense over the height: it does not read the axis of the channels.
    x = layers.Dense(2)(layers.Permute((3, 1, 2))(conv(8, "b")(x)))
    return layers.Dense(2)(layers.Flatten()(x))


@graph(IMAGE, a=4, b=4, c=8)
def operators(x):
    x = conv(8, "a")(x)
    y = (ops.relu6(x + 3.0) * 0.5 - conv(8, "b")(x)) / 3.0
    return top(1.0 - ops.silu(y) * layers.Activation("sigmoid")(x)) + top_of(
        conv(8, "c")(x) * np.arange(8, dtype="float32")
    )


def top_of(x):
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


@graph(IMAGE, a=8, b=8, c=8, d=8, e=4)
def what_needs_all_channels(x):
    x = layers.LayerNormalization()(conv(8, "a")(x))
    x = layers.Conv2D(8, 3, groups=2, name="b")(x)
    x = conv(8, "c", activation="softmax")(x)
    x = layers.GroupNormalization(2)(x)
    x = Doubled()(conv(8, "d")(Halves()(x)))
    return top(conv(8, "e")(x))


class Doubled(layers.ReLU):
    """A subclass of a layer that has a rule."""

    def call(self, inputs):
        return 2 * super().call(inputs)


class Function(layers.Layer):
    """A layer without a config."""

    def __init__(self, function, name=None):
        super().__init__(name=name)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


class Halves(layers.Layer):
    """A layer without a rule."""

    def call(self, inputs):
        return inputs[..., :4]


@graph((7,), a=4, b=4)
def embedded(x):
    x = layers.Embedding(5, 8, name="a")(x)
    return layers.Dense(2)(layers.Flatten()(layers.Conv1D(8, 3, name="b")(x)))


@graph((7, 4), q=4, k=4, v=3)
def attention(x):
    query = layers.Dense(8, name="q")(x)
    key = layers.Dense(8, name="k")(x)
    value = layers.Dense(6, name="v")(x)
    x = layers.Attention()([query, value, key])
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


@graph((7, 4), a=4, b=3)
def attention_to_itself(x):
    x = layers.Dense(8, name="a")(x)
    x = layers.Attention(use_scale=True)([x, x])
    x = layers.Dense(6, name="b")(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


@graph((7, 4), heads=2, cross=3, a=4, b=2)
def attention_heads(x):
    x = layers.LayerNormalization()(layers.Dense(8)(x))
    # On JAX, Keras cannot compute values of another width than the keys.
    width = 3 if BACKEND == "jax" else 5
    x = x + layers.MultiHeadAttention(4, 3, width, name="heads")(x, x)
    cross = layers.MultiHeadAttention(6, 2, use_bias=False, name="cross")
    y = layers.Dense(4, name="b")(x)
    y = cross(y, x[:, :5], key=x[:, 2:], use_causal_mask=True)
    return top_of_words(layers.Dense(8, "gelu", name="a")(y))


@graph((4, 5, 6), heads=2)
def attention_heads_in_two_dimensions(x):
    heads = layers.MultiHeadAttention(
        4, 3, output_shape=5, attention_axes=(1, 2), name="heads"
    )
    return layers.Dense(2)(layers.Flatten()(heads(x, x, key=x)))


@graph((7, 4), a=3, heads=4)
def attention_heads_with_scores(x):
    x = layers.Dense(5)(layers.Dense(6, name="a")(x))
    heads = layers.MultiHeadAttention(4, 3, name="heads")
    x, scores = heads(x, x, return_attention_scores=True)
    return [top_of_words(x), scores]


def top_of_words(x):
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


# On JAX, Keras cannot compute it in float64.
SIMPLE = {"dtype": "float32" if BACKEND == "jax" else None, "dropout": 0.2}


@graph((7, 4), a=4, b=3, c=5, d=2)
def recurrent(x):
    x = layers.LSTM(8, return_sequences=True, name="a")(x)
    y = layers.GRU(6, return_sequences=True, name="b")(x)
    x = layers.Concatenate()([x, layers.ReLU()(y)])
    x = layers.SimpleRNN(10, return_sequences=True, name="c", **SIMPLE)(x)
    d = layers.GRU(4, "elu", reset_after=False, name="d", unroll=True)
    return layers.Dense(2)(d(x))


@graph((7,), words=3, a=4, b=4)
def recurrent_residual_with_a_mask(x):
    x = layers.Embedding(5, 6, mask_zero=True, name="words")(x)
    x = layers.LSTM(8, return_sequences=True, use_bias=False, name="a")(x)
    y = layers.LSTM(8, return_sequences=True, go_backwards=True, name="b")(x)
    return layers.Dense(2)(layers.LSTM(2)(x + y))


@graph((7, 4), forward_a=4, backward_a=4, forward_b=3, backward_c=3, top=2)
def recurrent_in_both_directions(x):
    inner = layers.LSTM(8, return_sequences=True, name="a")
    x = layers.Bidirectional(inner)(x)
    b = layers.GRU(6, name="b")
    c = layers.LSTM(6, go_backwards=True, name="backward_c")
    x = layers.Bidirectional(b, "sum", backward_layer=c)(x)
    return layers.Dense(2, name="top")(x)


@graph((7, 4), forward_a=8, b=8, c=8, d=3)
def recurrent_layers_that_keep_their_units(x):
    x = layers.Bidirectional(
        layers.LSTM(8, "softmax", return_sequences=True, name="a")
    )(x)
    x = layers.LSTM(8, "softmax", return_sequences=True, name="b")(x)
    x, state = layers.SimpleRNN(
        8, return_sequences=True, return_state=True, name="c", **SIMPLE
    )(x)
    x = layers.GRU(8)(x, initial_state=state)
    return layers.Dense(2)(layers.Dense(6, name="d")(x))


@graph((7, 4), q=4, k=4, v=3)
def attention_by_name(x):
    query = layers.Dense(8, name="q")(x)
    key = layers.Dense(8, name="k")(x)
    value = layers.Dense(6, name="v")(x)
    x = layers.Attention()(inputs=[query, value, key])
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


@graph((7, 4), a=8, b=8, c=4)
def attention_with_masks(x):
    a, b = layers.Dense(8, name="a")(x), layers.Dense(8, name="b")(x)
    mask = x[..., 0] > 0
    x = layers.Attention()(mask=[mask, mask], inputs=[a, b])
    x = layers.GlobalAveragePooling1D()(x)
    return layers.Dense(2)(layers.Dense(8, name="c")(x))


@graph(IMAGE, a=4, shared=4)
def shared_layers(x):
    shared, norm = conv(8, "shared"), layers.BatchNormalization()
    x = norm(conv(8, "a")(x))
    for _ in range(2):
        x = layers.ReLU()(norm(shared(x)))
    return top(x)


@graph(IMAGE, a=4, b=4, shared=2)
def a_layer_shared_by_two_branches(x):
    shared = conv(4, "shared")
    a, b = shared(block(x, 8, "a")), shared(block(x, 8, "b"))
    return top(layers.Concatenate()([a, b]))


@graph(IMAGE, a=8, shared=4)
def a_shared_layer_that_reads_an_input(x):
    shared = layers.Dense(8, name="shared")
    a, b = conv(8, "a")(x), keras.layers.Concatenate()([x, x, x[..., :2]])
    return top(layers.Add()([shared(a), shared(b)]))


@graph(IMAGE, a=4, b=3)
def shared_reshape(x):
    shared = layers.Reshape((6, 6, 8))
    x = shared(shared(block(x, 8, "a")))
    return top(conv(6, "b")(x))


@graph(IMAGE, a=4, b=4)
def nested(x):
    inner = keras.Input((6, 6, 8))
    y = layers.Add()([inner, conv(8, "b")(inner)])
    return top(keras.Model(inner, y, name="inner")(block(x, 8, "a")))


@graph(IMAGE, a=4, b=4)
def nested_twice(x):
    inner = keras.Sequential([keras.Input((6, 6, 8)), conv(8, "b")])
    return top(inner(layers.ReLU()(inner(block(x, 8, "a")))))


@graph(IMAGE, a=4, b=4, c=3)
def nested_with_several_inputs(x):
    one, two = keras.Input((6, 6, 8)), keras.Input((6, 6, 8))
    inner = keras.Model([one, two], [one * two, conv(6, "c")(one)])
    y, z = inner([conv(8, "a")(x), conv(8, "b")(x)])
    return top(layers.Concatenate()([y, z]))


@graph(IMAGE, a=8, b=8, c=4)
def nested_that_picks_by_name(x):
    one, two = (keras.Input((6, 6, 8), name=name) for name in "zy")
    inner = keras.Model([one, two], one - 2 * two)
    x = inner({"z": conv(8, "a")(x), "y": conv(8, "b")(x)})
    return top(conv(8, "c")(x))


@graph(IMAGE, a=8, b=4, top=3)
def two_outputs(x):
    a = block(x, 8, "a")
    return [top(block(a, 8, "b")), a, x]


@graph(IMAGE, a=4, shortcut=4)
def normalized_inputs(x):
    x = layers.Normalization(mean=[0.1] * 3, variance=[2.0] * 3)(x)
    x = layers.Add()([conv(8, "a")(x), conv(8, "shortcut", 1)(x)])
    return top(x)


@graph(IMAGE, a=4)
def flattened_by_reshape(x):
    return layers.Dense(2)(layers.Reshape((-1,))(block(x, 8, "a")))


@graph((None, None, 3), a=4, b=8)
def unknown_sizes(x):
    x = layers.MaxPooling2D(2)(block(x, 8, "a"))
    x = layers.Reshape((-1, 8))(conv(8, "b")(x))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def width(layer):
    names = ("filters", "units", "output_dim", "num_heads")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def found_layers(model):
    return {layer.name: layer for layer in model._flatten_layers()}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name):
    make, widths = GRAPHS[name]
    model = make()
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    found = found_layers(small)
    assert {name: width(found[name]) for name in widths} == widths


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="has no such kernels for the CPU"
)
def test_channels_first():
    options = {"data_format": "channels_first"}
    inputs = keras.Input((3, 6, 6))
    x = layers.Conv2D(8, 3, padding="same", **options, name="a")(inputs)
    x = layers.BatchNormalization(axis=1)(x)
    y = layers.DepthwiseConv2D(3, padding="same", **options)(x)
    x = layers.MaxPooling2D(2, **options)(layers.Add()([x, y]))
    x = layers.Conv2DTranspose(6, 2, **options, name="b")(x)
    y = layers.GlobalAveragePooling2D(keepdims=True, **options)(x)
    x = layers.Flatten(**options)(layers.Multiply()([x, y]))
    model = keras.Model(inputs, layers.Dense(2)(x))
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    found = found_layers(small)
    assert (found["a"].filters, found["b"].filters) == (4, 3)


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("shortcut", ["projection", "padding"])
def test_cifar_resnets(shortcut, depth):
    model = networks.cifar_resnet(depth, shortcut, size=8)
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    assert small.count_params() < 0.27 * model.count_params()


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(
    "family, options, left",
    [
        ("MobileNet", {"alpha": 0.25}, 0.28),
        ("MobileNetV2", {"alpha": 0.35}, 0.29),
        ("MobileNetV3Small", {}, 0.28),
        ("EfficientNetV2B0", {}, 0.28),
    ],
)
def test_models_of_keras_applications(family, options, left):
    model = getattr(keras.applications, family)(
        weights=None,
        input_shape=(32, 32, 3),
        classes=5,
        classifier_activation=None,
        **options,
    )
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    assert small.count_params() < left * model.count_params()


def test_a_backbone_of_keras_hub():
    import keras_hub

    model = keras_hub.models.ResNetBackbone(
        input_conv_filters=[16],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        use_pre_activation=True,
        image_shape=(8, 8, 3),
    )
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    assert small.count_params() < 0.4 * model.count_params()


# The following tests are not about the graphs above.


def small_cnn(**kwargs):
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            conv(4, "a", **kwargs),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(6, activation="relu", name="b"),
            layers.Dense(2, name="top"),
        ],
        name="small",
    )


def kernel(model, name):
    return to_numpy(found_layers(model)[name].kernel)


def test_l1_keeps_the_largest_filters():
    model = small_cnn()
    sizes = np.array([3.0, 1.0, 4.0, 2.0])
    kernels = sizes * np.random.default_rng(0).choice([-1, 1], (3, 3, 3, 4))
    model.get_layer("a").kernel.assign(kernels)
    small = prune_channels(model, 0.5)
    np.testing.assert_array_equal(kernel(small, "a"), kernels[..., [0, 2]])
    rows = kernel(model, "b").reshape(36, 4, 6)[:, [0, 2]].reshape(72, 6)
    strength = np.abs(kernel(model, "b")).sum(axis=0)
    kept = np.sort(np.argsort(strength)[3:])
    np.testing.assert_array_equal(kernel(small, "b"), rows[:, kept])


def test_l1_goes_over_the_whole_group():
    inputs = keras.Input((1,))
    a, b = (layers.Dense(3, name=name)(inputs) for name in "ab")
    model = keras.Model(inputs, layers.Dense(2)(a + b))
    model.get_layer("a").kernel.assign([[1.0, 5.0, 3.0]])
    model.get_layer("b").kernel.assign([[-7.0, -1.0, -2.0]])
    small = prune_channels(model, 0.6)
    np.testing.assert_array_equal(kernel(small, "a"), [[1.0]])
    np.testing.assert_array_equal(kernel(small, "b"), [[-7.0]])


def test_l1_of_recurrent_units_goes_over_all_gates_and_both_kernels():
    inputs = keras.Input((5, 2))
    x = layers.GRU(3, use_bias=False, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    cell = model.get_layer("a").cell
    # Columns: three gates of three units. Of all units, the sums are 4, 5, 3.
    cell.kernel.assign([[1, 0, 1, 0, 0, 1, 1, 0, 0], [0] * 9])
    recurrent = np.zeros((3, 9))
    recurrent[:, [3, 1, 4, 8]] = [[1, 2, 0, 0], [1, 0, 3, 0], [0, 0, 0, -1]]
    cell.recurrent_kernel.assign(recurrent)
    small = prune_channels(model, 0.4).get_layer("a").cell
    np.testing.assert_array_equal(
        to_numpy(small.kernel), [[1, 0, 0, 0, 1, 0], [0] * 6]
    )
    kept = recurrent[np.ix_([0, 1], [0, 1, 3, 4, 6, 7])]
    np.testing.assert_array_equal(to_numpy(small.recurrent_kernel), kept)


def heads_and_directions():
    inputs = keras.Input((7, 4))
    x = layers.MultiHeadAttention(4, 3, name="heads")(inputs, inputs)
    inner = layers.LSTM(6, name="lstm")
    x = layers.Bidirectional(inner, name="both")(x)
    return keras.Model(inputs, layers.Dense(2)(x))


@pytest.mark.parametrize(
    "options, heads, forward, backward",
    [
        ({"ratio": 0.5}, 2, 3, 3),
        ({"ratio": 0.5, "exclude": "heads"}, 4, 3, 3),
        ({"ratio": 0.5, "exclude": "both"}, 2, 6, 6),
        ({"ratio": 0.5, "exclude": "backward_lstm"}, 2, 6, 6),
        ({"ratio": {"heads": 0.75, "both/forward_lstm": 0.5}}, 1, 3, 3),
        ({"ratio": 0.99}, 1, 1, 1),
    ],
)
def test_heads_and_directions_are_named(options, heads, forward, backward):
    model = heads_and_directions()
    small = prune_channels(model, **options)
    both = small.get_layer("both")
    assert small.get_layer("heads").num_heads == heads
    assert both.forward_layer.units == forward
    assert both.backward_layer.units == backward
    again = keras.Model.from_config(small.get_config())
    again.set_weights(small.get_weights())
    x = reference.inputs_for(model)
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(small(x)))


def test_heads_with_lora_and_stateful_layers_are_kept():
    model = heads_and_directions()
    model.get_layer("heads").query_dense.enable_lora(2)
    small = prune_channels(model, 0.5)
    assert small.get_layer("heads").num_heads == 4
    assert small.get_layer("both").forward_layer.units == 3
    inputs = keras.Input(batch_shape=(8, 7, 4))
    x = layers.LSTM(6, stateful=True, name="a")(inputs)
    x = layers.Dense(4, name="b")(x)
    small = prune_channels(keras.Model(inputs, layers.Dense(2)(x)), 0.5)
    assert small.get_layer("a").units == 6
    assert small.get_layer("b").units == 2


def test_batch_norm_keeps_the_largest_scales():
    model = small_cnn()
    model.get_layer("norm").gamma.assign([0.1, -3.0, 2.0, 0.5])
    small = prune_channels(model, 0.5, importance="batch_norm")
    np.testing.assert_array_equal(
        kernel(small, "a"), kernel(model, "a")[..., [1, 2]]
    )
    # These have no scale, so no score.
    assert small.get_layer("b").units == 6


def test_given_scores():
    model = small_cnn()
    given = {"a": [1, 4, 3, 2]}
    for importance in (given, lambda layer: given.get(layer.name)):
        small = prune_channels(model, 0.5, importance=importance)
        np.testing.assert_array_equal(
            kernel(small, "a"), kernel(model, "a")[..., [1, 2]]
        )
        assert small.get_layer("b").units == 6


@pytest.mark.parametrize(
    "ratio, widths", [(0, (4, 6)), (0.1, (4, 5)), (0.3, (3, 4)), (0.99, (1, 1))]
)
def test_ratios(ratio, widths):
    model = reference.with_distinct_weights(small_cnn())
    small = prune_channels(model, ratio)
    assert (small.get_layer("a").filters, small.get_layer("b").units) == widths
    if ratio == 0:
        x = reference.inputs_for(model)
        np.testing.assert_array_equal(
            to_numpy(model(x, training=False)),
            to_numpy(small(x, training=False)),
        )


def test_excluded_layers():
    inputs = keras.Input(IMAGE)
    x = small_cnn()(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="c")(x)))
    small = prune_channels(model, 0.5, exclude=["small/norm", "c"])
    found = found_layers(small)
    assert (found["a"].filters, found["b"].units, found["c"].units) == (4, 3, 8)
    # The output of a nested model is not an output of the outer one.
    assert found["top"].units == 1
    small = prune_channels(model, 0.5, exclude=("small",))
    assert found_layers(small)["top"].units == 2


def test_what_is_kept():
    model = small_cnn(trainable=False, kernel_regularizer="l2")
    model.compile("sgd", "mse")
    before = weights_of(model)
    small = prune_channels(model, 0.5)
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert type(small) is keras.Sequential
    assert not small.compiled
    assert small.name == "small"
    assert [x.name for x in small.layers] == [x.name for x in model.layers]
    assert not small.get_layer("a").trainable
    assert small.get_layer("b").trainable
    assert isinstance(
        small.get_layer("a").kernel_regularizer, keras.regularizers.L2
    )
    shared = {id(v) for v in small.variables} & {id(v) for v in model.variables}
    assert not shared


def test_dtype_policies():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small_cnn()
    small = prune_channels(model, 0.5)
    assert small.get_layer("a").dtype_policy.name == "mixed_bfloat16"
    assert kernel(small, "a").dtype == kernel(model, "a").dtype


def test_files_and_training(tmp_path):
    small = prune_channels(GRAPHS["nested"][0](), 0.5)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x = reference.inputs_for(small)
    np.testing.assert_array_equal(
        small.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    before = weights_of(small)
    small.compile("sgd", "mse")
    small.fit(x, np.ones((8, 3)), verbose=0)
    assert not np.array_equal(before[0], weights_of(small)[0])


def test_structures_of_inputs_and_outputs():
    inputs = {name: keras.Input((5,), name=name) for name in "ab"}
    x = layers.Dense(4, name="c")(inputs["a"]) * layers.Dense(4)(inputs["b"])
    outputs = {"sum": layers.Dense(2)(x), "rest": [inputs["a"]]}
    model = keras.Model(inputs, outputs)
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    assert small.get_layer("c").units == 2
    keras.tree.assert_same_structure(small.output, model.output)


def test_a_subclassed_model_inside_keeps_its_channels():
    inputs = keras.Input((5,))
    x = Subclassed()(layers.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4, name="b")(x)))
    difference, small = reference.largest_difference(model, halve)
    assert difference < TOLERANCE
    assert small.get_layer("a").units == 4
    assert small.get_layer("b").units == 2


def test_refused_models():
    for model in (Subclassed(), keras.Sequential([layers.Dense(4)]), len):
        with pytest.raises(ValueError, match=r"functional.*Received: model="):
            prune_channels(model, 0.5)
    with pytest.raises(ValueError, match=r"'dense' and 'tied'.*kernel"):
        prune_channels(with_tied_layers(), 0.5)
    inputs = keras.Input((5,))
    x = layers.Dense(4)(inputs)
    model = keras.Model(inputs, Function(abs, name="function")(x))
    with pytest.raises(ValueError, match=r"'function'.*cannot be built again"):
        prune_channels(model, 0)
    model = keras.Model(inputs, layers.Dense(4)(inputs))
    with pytest.raises(ValueError, match="no channel that can be removed"):
        prune_channels(model, 0.5)
    with pytest.raises(ValueError, match="has no score"):
        prune_channels(GRAPHS["dense"][0](), 0.5, importance="batch_norm")


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, 2, "half", True])
def test_refused_ratios(ratio):
    with pytest.raises(ValueError, match=r"`ratio` must.*Received: ratio="):
        prune_channels(small_cnn(), ratio)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"exclude": ["aa"]}, r"exclude.*not have.*'aa'. Did you mean.*'a'"),
        ({"exclude": 3}, "`exclude` must be a name of a layer or a list"),
        ({"exclude": [3]}, "`exclude` must name layers by strings"),
        ({"importance": "l3"}, "`importance` must be.*'l3'"),
        ({"importance": {"c": [1.0]}}, "`importance` names.*'c'"),
        ({"importance": {"norm": [1.0] * 4}}, "makes no channels.*'norm'"),
        ({"importance": {"a": [1.0] * 3}}, r"\(3,\) for 'a', which makes 4"),
        ({"importance": {"a": [1.0, 2.0, np.nan, 1.0]}}, "finite score"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(small_cnn(), 0.5, **arguments)


def transformer(width, norm):
    """A ViT of two blocks, whose residual stream has this width."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 4, 4, name="patches")(inputs)
    x = layers.Reshape((4, width))(x)
    positions = keras.Input((4,), dtype="int32")
    x = x + layers.Embedding(4, width)(positions)
    for _ in range(2):
        y = norm()(x)
        x = x + layers.MultiHeadAttention(2, 3)(y, y, use_causal_mask=True)
        y = layers.Dense(10, activation="gelu")(norm()(x))
        x = x + layers.Dense(width)(y)
    return keras.Model([inputs, positions], top_of_words(norm()(x)))


@pytest.mark.parametrize(
    "norm", [layers.LayerNormalization, layers.RMSNormalization]
)
def test_the_width_of_a_transformer(norm):
    """What is left is the very transformer that is narrower."""
    wide, narrow = transformer(8, norm), transformer(4, norm)
    for weight in narrow.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    for weight, part in zip(wide.weights, narrow.weights, strict=True):
        values = np.ones(weight.shape)
        values[tuple(map(slice, part.shape))] = to_numpy(part)
        weight.assign(values)
    scores = {"patches": np.arange(8)[::-1]}
    small = prune_channels(wide, 0.5, scores, through_layer_norm=True)
    for weight, part in zip(small.weights, narrow.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), to_numpy(part))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    inputs = [x, np.array([[0, 1, 2, 3]] * 2)]
    np.testing.assert_allclose(
        to_numpy(small(inputs)), to_numpy(narrow(inputs)), atol=1e-5
    )
    all_of_it = prune_channels(wide, 0.5, through_layer_norm=True)
    assert all_of_it.count_params() < 0.4 * wide.count_params()
    # Without it, the copy computes what the model does.
    kept = prune_channels(wide, 0.5)
    assert kept.get_layer("patches").filters == 8


def test_layer_norm_over_other_axes_keeps_the_channels():
    inputs = keras.Input((4, 6))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.LayerNormalization(axis=(1, 2))(x)
    model = keras.Model(inputs, top_of_words(layers.Dense(8, name="b")(x)))
    small = prune_channels(model, 0.5, through_layer_norm=True)
    assert small.get_layer("a").units == 8
    assert small.get_layer("b").units == 4
