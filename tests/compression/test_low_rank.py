"""Low rank: the best approximation, exact at full rank, always smaller."""

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

from keras_distill.compression import _factorize as low_rank_module
from keras_distill.compression import factorize

pytestmark = pytest.mark.any_backend

IMAGE = (9, 9, 4)


def low_rank(shape, rank, seed=0):
    generator = np.random.default_rng(seed)
    inputs = int(np.prod(shape[:-1]))
    left = generator.normal(size=(inputs, rank)) / inputs**0.5
    return (left @ generator.normal(size=(rank, shape[-1]))).reshape(shape)


def model_of(layer, shape=IMAGE, rank=None):
    """A model of one layer, of a given rank, with a bias."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs), name="whole")
    if rank is not None:
        layer.kernel.assign(low_rank(layer.kernel.shape, rank))
    if layer.use_bias:
        layer.bias.assign(np.linspace(-1, 1, layer.bias.shape[0]))
    return model


LAYERS = {
    "dense": lambda **k: layers.Dense(12, **k),
    "valid": lambda **k: layers.Conv2D(12, 3, **k),
    "same": lambda **k: layers.Conv2D(12, (3, 2), padding="same", **k),
    "strides": lambda **k: layers.Conv2D(12, 3, strides=2, padding="same", **k),
    "dilation": lambda **k: layers.Conv2D(12, 3, dilation_rate=2, **k),
    "pointwise": lambda **k: layers.Conv2D(12, 1, use_bias=False, **k),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_exact_at_the_rank_of_the_kernel(kind):
    layer = LAYERS[kind](activation="tanh", name="layer")
    model = model_of(layer, rank=2)
    for arguments in ({"rank": 2}, {"rank": {"layer": 2}}, {"energy": 1.0}):
        copy = factorize(model, **arguments)
        same_outputs(model, copy)
        first, second = copy.layers[1:]
        assert (first.name, second.name) == ("layer_in", "layer")
        assert first.kernel.shape[-1] == second.kernel.shape[-2] == 2
        assert copy.count_params() < model.count_params()


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="has no such kernels for the CPU"
)
def test_channels_first():
    layer = layers.Conv2D(12, 3, data_format="channels_first")
    model = model_of(layer, (4, 9, 9), rank=2)
    same_outputs(model, factorize(model, rank=2))


@pytest.mark.parametrize("kind", ["dense", "same"])
def test_the_nearest_kernel(kind):
    model = model_of(LAYERS[kind](), rank=4)
    kernel = to_numpy(model.layers[1].kernel).reshape(-1, 12)
    first, second = factorize(model, rank=2).layers[1:]
    left = to_numpy(first.kernel).reshape(-1, 2)
    right = to_numpy(second.kernel).reshape(2, 12)
    missed = np.sum((kernel - left @ right) ** 2)
    values = np.linalg.eigvalsh(kernel.T @ kernel)[::-1]
    assert missed == pytest.approx(values[2:].sum(), rel=1e-3)
    # Both factors have the same norm, for training.
    assert np.sum(left**2) == pytest.approx(np.sum(right**2), rel=1e-4)


def test_energy():
    model = model_of(layers.Dense(40), (40,))
    u, _, v = np.linalg.svd(low_rank((40, 40), 40))
    # The squares are 16, 8, 4, 2, 1 and 1 thirty-seconds of their sum.
    values = np.sqrt([16, 8, 4, 2, 1, 1] + [0] * 34)
    model.layers[1].kernel.assign(u * values @ v)
    for energy, rank in [(0.4, 1), (0.7, 2), (0.76, 3), (0.9, 4), (1, 6)]:
        first = factorize(model, energy=energy).layers[1]
        assert first.units == rank


def test_energy_of_many_values_whose_sums_are_rounded():
    # Their cumulative sum differs from their sum by a relative 1.4e-12.
    assert low_rank_module._smallest_rank(np.full(10**5, 0.9), 1.0) == 10**5
    assert low_rank_module._smallest_rank(np.zeros(3), 1.0) == 1


def test_what_is_factorized_twice():
    model = model_of(layers.Dense(40, name="layer"), (40,))
    once = factorize(model, rank=15)
    twice = factorize(once, rank={"layer": 5, "layer_in": 6})
    thrice = factorize(twice, rank={"layer": 3})
    names = [layer.name for layer in thrice.layers[1:]]
    assert names == [
        "layer_in_in",
        "layer_in",
        "layer_in_2",
        "layer_in_3",
        "layer",
    ]
    assert [layer.units for layer in thrice.layers[1:]] == [6, 15, 5, 3, 40]
    same_outputs(once, factorize(once, energy=1.0))


def test_a_name_that_is_taken_in_a_model_inside():
    inner = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(20, name="layer"),
            layers.ReLU(name="layer_in"),
        ]
    )
    model = keras.Sequential([keras.Input((20,)), inner])
    (copy,) = factorize(model, rank=4).layers
    names = [layer.name for layer in copy.layers]
    assert names == ["layer_in_2", "layer", "layer_in"]


def test_what_saves_nothing_stays():
    inputs = keras.Input((8,))
    x = layers.Dense(64, activation="relu", name="wide")(inputs)
    x = layers.Dense(64, name="square")(x)
    model = keras.Model(inputs, layers.Dense(2, name="top")(x))
    names = ["wide", "square_in", "square", "top"]
    for arguments in ({"rank": 10}, {"rank": {"square": 10}}):
        copy = factorize(model, **arguments)
        assert [layer.name for layer in copy.layers[1:]] == names
    # Random kernels have no low rank.
    assert len(factorize(model, energy=1.0).layers) == len(model.layers)
    # 31 is the maximum that saves parameters: 31 * 128 < 64 * 64.
    assert len(factorize(model, rank=31).layers) == len(model.layers) + 1
    with pytest.raises(ValueError, match=r"in any layer.* 31\. Rec.*rank=32"):
        factorize(model, rank=32)
    with pytest.raises(ValueError, match=r"'square'.*\(64, 64\).* 31\."):
        factorize(model, rank={"square": 32})
    with pytest.raises(ValueError, match=r"'top'.* 1\. Received: rank=2"):
        factorize(model, rank={"top": 2})


class Own(layers.Dense):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Conv2D(12, 3, groups=2),
        lambda: layers.Dense(12, kernel_constraint="non_neg"),
        lambda: layers.Dense(12, lora_rank=2),
        lambda: layers.DepthwiseConv2D(3),
        lambda: Own(12),
    ],
)
def test_unsuitable_layers_stay(make):
    layer = make()
    model = model_of(layer)
    copy = factorize(model, energy=0.5)
    assert len(copy.layers) == 2
    same_outputs(model, copy)
    with pytest.raises(ValueError, match="must name Dense or Conv2D"):
        factorize(model, rank={layer.name: 1})


def test_models_inside_and_shared_layers():
    shared = layers.Dense(20, name="shared")
    inner = keras.Sequential([keras.Input((20,)), shared], name="inner")
    inputs = keras.Input((20,))
    x = inner(inputs, training=False)
    model = keras.Model(inputs, shared(layers.ReLU()(shared(x))))
    shared.kernel.assign(low_rank((20, 20), 3))
    for rank in (3, {"inner/shared": 3}, {"shared": 3}):
        copy = factorize(model, rank=rank)
        same_outputs(model, copy)
        assert copy.count_params() == 2 * 3 * 20 + 20
        assert [x.name for x in copy.get_layer("inner").layers] == [
            "shared_in",
            "shared",
        ]


def test_what_is_kept(tmp_path):
    layer = layers.Dense(
        12,
        name="layer",
        trainable=False,
        kernel_regularizer="l2",
        activity_regularizer="l1",
        dtype="mixed_bfloat16",
    )
    model = model_of(layer, rank=2)
    model.compile("sgd", "mse")
    before = weights_of(model)
    copy = factorize(model, rank=2)
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert copy.name == "whole" and not copy.compiled
    for new in copy.layers[1:]:
        assert not new.trainable
        assert new.dtype_policy.name == "mixed_bfloat16"
        assert isinstance(new.kernel_regularizer, keras.regularizers.L2)
    # It belongs to the outputs, not to the tensor between the layers.
    assert copy.layers[1].activity_regularizer is None
    assert copy.layers[2].activity_regularizer is not None
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    for old, new in zip(weights_of(copy), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_copy_trains():
    copy = factorize(model_of(layers.Dense(12)), rank=2)
    before = weights_of(copy)
    copy.compile("sgd", "mse")
    copy.fit(np.ones((4, *IMAGE)), np.ones((4, 9, 9, 12)), verbose=0)
    for old, new in zip(before, weights_of(copy), strict=True):
        assert not np.array_equal(old, new)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of `rank` and `energy`.*rank=None, energy=None"),
        ({"rank": 2, "energy": 0.5}, "exactly one of `rank` and `energy`"),
        ({"rank": 0}, "`rank` must be a whole number above 0.*rank=0"),
        ({"rank": 2.5}, "rank=2.5"),
        ({"rank": {"layer": 0}}, r"rank\['layer'\]=0"),
        ({"rank": {"lager": 1}}, "`rank`.*'lager'. Did you mean.*'layer'"),
        ({"energy": 0}, "`energy` must be above 0"),
        ({"energy": 1.1}, "`energy` must be a number from 0 to 1.*1.1"),
    ],
)
def test_refused_arguments(arguments, message):
    model = model_of(layers.Dense(12, name="layer"))
    with pytest.raises(ValueError, match=message):
        factorize(model, **arguments)


def test_refused_models():
    for model in (Subclassed(), keras.Sequential([layers.Dense(4)])):
        with pytest.raises(
            ValueError, match=r"`factorize` requires a functional"
        ):
            factorize(model, rank=1)
    message = (
        r"`factorize` cannot separate layers.*'dense' and 'tied'.*dense/kernel'"
    )
    with pytest.raises(ValueError, match=message):
        factorize(with_tied_layers(), rank=1)
