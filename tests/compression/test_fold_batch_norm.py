"""Folding BatchNormalization: same outputs, fewer layers, no other change."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import to_numpy
from common import weights_of
from keras import layers

from keras_distill.compression import fold_batch_norm

pytestmark = pytest.mark.any_backend

RANGES = {
    "gamma": (-2.0, 2.0),
    "beta": (-1.0, 1.0),
    "bias": (-1.0, 1.0),
    "moving_mean": (-1.0, 1.0),
    "moving_variance": (0.2, 3.0),
}


def trained(model, seed=0):
    """Give a model weights as after training, instead of initial ones."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in RANGES:
            weight.assign(generator.uniform(*RANGES[weight.name], weight.shape))
    return model


def functional(shape, *stack, **kwargs):
    """A functional model of a chain of layers, with trained weights."""
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return trained(keras.Model(inputs, x, **kwargs))


def data_for(model, count=4):
    generator = np.random.default_rng(1)
    return keras.tree.map_structure(
        lambda t: generator.normal(size=(count, *t.shape[1:])).astype(
            "float32"
        ),
        model.input if hasattr(model, "input") else model.inputs[0],
    )


def norms(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]


def variables(model):
    return {id(variable) for variable in model.variables}


def fold(model, left=0, tolerance=1e-4):
    """Fold a model, check what must hold for each model, and return it."""
    x = data_for(model)
    before, outputs = weights_of(model), to_numpy(model(x, training=False))
    flags = [layer.trainable for layer in model._flatten_layers()]
    names = [layer.name for layer in model._flatten_layers()]

    folded = fold_batch_norm(model)

    results = to_numpy(folded(x, training=False))
    keras.tree.assert_same_structure(outputs, results)
    for expected, result in zip(
        keras.tree.flatten(outputs), keras.tree.flatten(results)
    ):
        scale = np.abs(expected.astype("float32")).max()
        assert scale > 0
        assert expected.dtype == result.dtype
        np.testing.assert_allclose(
            result.astype("float32"),
            expected.astype("float32"),
            rtol=0,
            atol=tolerance * scale,
        )
    assert len(norms(folded)) == left
    assert not variables(folded) & variables(model)
    assert flags == [layer.trainable for layer in model._flatten_layers()]
    assert names == [layer.name for layer in model._flatten_layers()]
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
    return folded


IMAGE = (6, 6, 3)
LAYERS = {
    "conv_1d": ((7, 3), lambda **k: layers.Conv1D(4, 3, **k)),
    "causal": ((7, 3), lambda **k: layers.Conv1D(4, 3, padding="causal", **k)),
    "conv_2d": (IMAGE, lambda **k: layers.Conv2D(4, 3, strides=2, **k)),
    "same": (IMAGE, lambda **k: layers.Conv2D(4, 3, padding="same", **k)),
    "groups": ((6, 6, 4), lambda **k: layers.Conv2D(6, 3, groups=2, **k)),
    "conv_3d": ((4, 4, 4, 2), lambda **k: layers.Conv3D(3, 2, **k)),
    "transpose_1d": ((5, 3), lambda **k: layers.Conv1DTranspose(4, 3, **k)),
    "transpose_2d": (
        IMAGE,
        lambda **k: layers.Conv2DTranspose(4, 3, strides=2, **k),
    ),
    "transpose_3d": (
        (3, 3, 3, 2),
        lambda **k: layers.Conv3DTranspose(4, 2, **k),
    ),
    "depthwise_1d": (
        (7, 3),
        lambda **k: layers.DepthwiseConv1D(3, depth_multiplier=2, **k),
    ),
    "depthwise_2d": (
        IMAGE,
        lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k),
    ),
    "separable_1d": (
        (7, 3),
        lambda **k: layers.SeparableConv1D(4, 3, depth_multiplier=2, **k),
    ),
    "separable_2d": (
        IMAGE,
        lambda **k: layers.SeparableConv2D(4, 3, depth_multiplier=2, **k),
    ),
    "dense": ((5,), lambda **k: layers.Dense(4, **k)),
    "dense_on_sequences": ((3, 5), lambda **k: layers.Dense(4, **k)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_every_layer_takes_a_normalization(kind, use_bias):
    shape, make = LAYERS[kind]
    model = functional(
        shape, make(use_bias=use_bias), layers.BatchNormalization()
    )
    assert len(fold(model).layers) == 2


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="has no such kernels for the CPU"
)
@pytest.mark.parametrize("kind", ["conv_2d", "depthwise_2d", "transpose_2d"])
def test_channels_first(kind):
    _, make = LAYERS[kind]
    options = {"data_format": "channels_first", "use_bias": False}
    norm = layers.BatchNormalization(axis=1)
    fold(functional((3, 6, 6), make(**options), norm))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_center_scale_and_epsilon(center, scale):
    norm = layers.BatchNormalization(center=center, scale=scale, epsilon=0.5)
    fold(functional(IMAGE, layers.Conv2D(4, 3), norm))


@pytest.mark.parametrize(
    "policy, tolerance",
    [("mixed_bfloat16", 0.03), ("bfloat16", 0.03), ("mixed_float16", 0.004)],
)
def test_dtype_policies(policy, tolerance):
    keras.config.set_dtype_policy(policy)
    model = functional((5,), layers.Dense(4), layers.BatchNormalization())
    folded = fold(model, tolerance=tolerance)
    assert folded.layers[1].dtype_policy.name == policy
    assert folded.layers[1].kernel.dtype == model.layers[1].kernel.dtype


def test_sequential_models():
    model = keras.Sequential(name="teacher")
    # `add` calls the layers again each time.
    for layer in (
        keras.Input(IMAGE),
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(3, name="top"),
    ):
        model.add(layer)
    folded = fold(trained(model))
    assert isinstance(folded, keras.Sequential)
    assert folded.name == "teacher"
    assert len(folded.layers) == 4
    assert folded.get_layer("top").units == 3


def test_residual_graph_with_operations():
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="conv_bn")(x)
    x = layers.ReLU()(x)
    x = 0.5 * x + inputs
    x = layers.Add()([x, keras.ops.mean(x, axis=1, keepdims=True)])
    x = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    folded = fold(trained(keras.Model(inputs, x)))
    names = [layer.name for layer in folded.layers]
    assert "conv" in names
    assert "conv_bn" not in names


def block(name, channels=3):
    return keras.Sequential(
        [
            keras.Input((6, 6, channels)),
            layers.Conv2D(3, 3, padding="same", name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name=name,
    )


def test_nested_models():
    inner = keras.Input(IMAGE)
    x = block("stem")(inner)
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="deep")(x))
    backbone = keras.Model(inner, x, name="backbone")
    inputs = keras.Input(IMAGE)
    x = layers.Flatten()(backbone(inputs, training=False))
    x = layers.BatchNormalization()(layers.Dense(3)(x))
    folded = fold(trained(keras.Model(inputs, x)))
    backbone = folded.get_layer("backbone")
    assert backbone.get_layer("deep").use_bias
    assert isinstance(backbone.get_layer("stem"), keras.Sequential)


def test_a_model_in_a_sequential_model():
    backbone = block("backbone")
    fold(trained(keras.Sequential([backbone, layers.Flatten()])))


def test_models_from_the_middle_of_another():
    whole = block("whole")
    part = keras.Model(whole.layers[0].output, whole.layers[1].output)
    fold(trained(part), left=1)
    fold(trained(keras.Model(whole.inputs, whole.layers[1].output)))
    # Other models may read the outputs of the layers.
    fold(whole)


def test_a_shared_model_is_folded_once():
    shared = block("shared")
    inputs = keras.Input(IMAGE)
    folded = fold(trained(keras.Model(inputs, shared(shared(inputs)))))
    assert len([m for m in folded.layers if m.name == "shared"]) == 1
    assert len(folded.weights) == 2


def test_shared_layers_stay_shared():
    conv = layers.Conv2D(3, 3, padding="same")
    norm = layers.BatchNormalization()
    inputs = keras.Input(IMAGE)
    x = layers.BatchNormalization()(conv(layers.ReLU()(conv(inputs))))
    x = norm(layers.Conv2D(3, 3)(norm(layers.Conv2D(3, 3)(x))))
    model = trained(keras.Model(inputs, x))
    assert len(fold(model, left=2).weights) == len(model.weights)


def test_a_layer_shared_by_two_nested_models_stays():
    whole = block("whole")
    conv = whole.get_layer("conv")
    other = keras.Sequential([keras.Input(IMAGE), conv], name="other")
    inputs = keras.Input(IMAGE)
    x = layers.Add()([whole(inputs), other(inputs)])
    folded = fold(trained(keras.Model(inputs, x)), left=1)
    convs = {folded.get_layer(n).get_layer("conv") for n in ("whole", "other")}
    assert len(convs) == 1


def test_an_output_that_is_read_elsewhere_stays():
    inputs = keras.Input(IMAGE)
    conv = layers.Conv2D(3, 3)(inputs)
    norm = layers.BatchNormalization()(conv)
    fold(trained(keras.Model(inputs, layers.Add()([conv, norm]))), left=1)
    fold(trained(keras.Model(inputs, [conv, norm])), left=1)


class Doubled(layers.Dense):
    def call(self, inputs):
        return keras.ops.square(super().call(inputs))


@pytest.mark.parametrize(
    "stack",
    [
        lambda norm: [layers.Dense(4, activation="relu"), norm],
        lambda norm: [layers.Dense(4), layers.ReLU(), norm],
        lambda norm: [norm, layers.Dense(4)],
        lambda norm: [layers.Dense(4), layers.Dropout(0.5), norm],
        lambda norm: [layers.Dense(4, dtype="bfloat16"), norm],
        lambda norm: [layers.Dense(4, lora_rank=2), norm],
        lambda norm: [Doubled(4), norm],
    ],
)
def test_what_can_not_be_folded_stays(stack):
    fold(functional((5,), *stack(layers.BatchNormalization())), left=1)


def test_another_axis_stays():
    norm = layers.BatchNormalization(axis=1)
    fold(functional((4, 5), layers.Dense(4), norm), left=1)
    norm = layers.BatchNormalization(axis=1)
    fold(functional(IMAGE, layers.Conv2D(4, 3), norm), left=1)
    norm = layers.BatchNormalization(axis=3)
    fold(functional(IMAGE, layers.Conv2D(4, 3), norm))


def test_a_normalization_with_a_mask_stays():
    inputs = keras.Input((4, 5))
    dense = layers.Dense(4)(inputs)
    mask = keras.ops.any(inputs > 0, axis=-1)
    x = layers.BatchNormalization()(dense, mask=mask)
    fold(trained(keras.Model(inputs, x)), left=1)


def test_structures_of_inputs_and_outputs():
    inputs = {
        "a": keras.Input((5,), name="a"),
        "b": keras.Input(IMAGE, name="b"),
    }
    a = layers.BatchNormalization()(layers.Dense(4)(inputs["a"]))
    b = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs["b"]))
    outputs = {"first": a, "rest": [b, layers.Flatten()(b)]}
    folded = fold(trained(keras.Model(inputs, outputs)))
    assert [tensor.name for tensor in folded.inputs] == ["a", "b"]


def test_layers_with_state_of_their_own():
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(2).normal(3, 2, (64, 5)))
    model = functional(
        (5,),
        layers.Normalization(mean=[1.0] * 5, variance=[4.0] * 5),
        adapted,
        layers.Dense(4, name="dense"),
        layers.BatchNormalization(),
        layers.Reshape((4, 1)),
        layers.Bidirectional(layers.GRU(3)),
    )
    fold(model)


def test_trainable_flags():
    inner = block("inner")
    model = functional(IMAGE, inner, layers.Conv2D(2, 1), layers.Flatten())
    model.trainable = False
    inner.get_layer("conv").trainable = True
    folded = fold(model)
    assert not folded.trainable
    assert not folded.get_layer("inner").trainable
    assert folded.get_layer("inner").get_layer("conv").trainable
    assert not folded.layers[2].trainable


def test_compiled_models_and_files(tmp_path):
    model = functional(IMAGE, layers.Conv2D(2, 3), layers.BatchNormalization())
    model.compile("adam", loss=lambda y, p: keras.ops.mean(p, axis=-1))
    folded = fold(model)
    assert not folded.compiled
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    x = data_for(model)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), folded.predict(x, verbose=0)
    )


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


class OwnCall(keras.Model):
    def call(self, x):
        return 2 * super().call(x)


def test_models_without_a_graph_are_refused():
    with pytest.raises(ValueError, match=r"functional.*name=teacher"):
        fold_batch_norm(Subclassed(name="teacher"))
    inputs = keras.Input((5,))
    with pytest.raises(ValueError, match="functional"):
        fold_batch_norm(OwnCall(inputs, layers.Dense(4)(inputs)))
    with pytest.raises(ValueError, match="with an input"):
        fold_batch_norm(keras.Sequential([layers.Dense(4)]))
    with pytest.raises(ValueError, match="of type function"):
        fold_batch_norm(lambda x: x)


def test_models_without_a_graph_inside_stay():
    inner = Subclassed(name="inner")
    model = functional((5,), inner, layers.Dense(3))
    inner.dense.trainable = False
    assert not fold(model, left=1).get_layer("inner").dense.trainable


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(
    "family, size", [("MobileNetV2", 32), ("ResNet50", 32)]
)
def test_models_of_keras_applications(family, size):
    model = getattr(keras.applications, family)(
        weights=None,
        input_shape=(size, size, 3),
        classes=5,
        classifier_activation=None,
    )
    fold(trained(model))
