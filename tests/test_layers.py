"""All functions name layers in the same way, by name or path."""

import keras
import numpy as np
import pytest
from common import CLASSES
from common import to_numpy
from common import vectors
from keras import layers

from keras_distill._graphs._layers import find_layer
from keras_distill._graphs._layers import find_layers
from keras_distill._graphs._layers import values_by_layer
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing
from keras_distill.compression import factorize
from keras_distill.compression import prune_channels

pytestmark = pytest.mark.any_backend


def branch(name, inputs=6):
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(8, activation="relu", name="same"),
            layers.Dense(8, activation="relu", name=f"only_{name}"),
        ],
        name=name,
    )


def nested():
    """A model with a layer `same` at the top and in two nested models."""
    inputs = keras.Input((6,))
    deep_inputs = keras.Input((8,))
    inner = branch("inner", 8)
    deep = keras.Model(deep_inputs, inner(deep_inputs), name="deep")
    x = deep(branch("left")(inputs))
    x = layers.Dense(8, activation="relu", name="same")(x)
    x = layers.Dense(8, activation="relu", name="middle")(x)
    return keras.Model(
        inputs, layers.Dense(CLASSES, name="logits")(x), name="whole"
    )


def paths_and_layers(model):
    left, deep = model.get_layer("left"), model.get_layer("deep")
    inner = deep.get_layer("inner")
    return {
        "same": model.get_layer("same"),
        "whole/same": model.get_layer("same"),
        "left/same": left.get_layer("same"),
        "deep/inner/same": inner.get_layer("same"),
        "inner/same": inner.get_layer("same"),
        "only_inner": inner.get_layer("only_inner"),
        "deep/inner/only_inner": inner.get_layer("only_inner"),
        "inner": inner,
        "left": left,
    }


def test_names_paths_and_ends_of_paths():
    model = nested()
    for path, layer in paths_and_layers(model).items():
        assert find_layer(model, path, "exclude") is layer
    assert find_layers(model, "left", "exclude") == [model.get_layer("left")]
    both = find_layers(model, ("middle", "only_left"), "exclude")
    assert [layer.name for layer in both] == ["middle", "only_left"]


class Block(layers.Layer):
    """A custom layer with inner layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4, name="first")
        self.second = layers.Dense(4, name="second")

    def call(self, inputs):
        return self.second(self.first(inputs))


class Outer(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(name="block")
        self.same = self.block

    def call(self, inputs):
        return self.same(self.block(inputs))


def test_subclassed_models_and_custom_layers():
    model = Outer(name="outer")
    model(np.zeros((1, 4)))
    for name in ("block/first", "first", "outer/block/first"):
        assert find_layer(model, name, "exclude") is model.block.first
    # `layer.path` of Keras works too.
    kernel_of = {layer.path: layer for layer in model.block._flatten_layers()}
    for path, layer in kernel_of.items():
        assert find_layer(model, path, "exclude") is layer
    attention = layers.MultiHeadAttention(2, 2, name="attention")
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, attention(inputs, inputs))
    found = find_layer(model, "attention/query", "exclude")
    assert found is attention.query_dense


def test_a_layer_that_is_shared_is_one():
    shared = branch("shared", 8)
    inputs = keras.Input((8,))
    twice = keras.Sequential([keras.Input((8,)), shared], name="twice")
    model = keras.Model(inputs, twice(shared(inputs)))
    assert find_layer(model, "same", "exclude") is shared.layers[0]


@pytest.mark.parametrize(
    "name, message",
    [
        ("sane", r"`exclude`.*'whole' does not have.*'sane'.*mean \['same'"),
        ("only_lef", r"Did you mean \['left/only_left'"),
        ("right/only_left", r"Did you mean \['left/only_left'\]"),
        ("zzz", r"It has .*'left/same'.* and 4 more\."),
        (7, "`exclude` must name layers by strings.*7"),
    ],
)
def test_layers_that_are_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        find_layer(nested(), name, "exclude")


def test_a_name_of_several_layers_is_refused_with_their_paths():
    inputs = keras.Input((6,))
    x = layers.Add()([branch("left")(inputs), branch("right")(inputs)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    message = r"2 layers .*'same'.*\['left/same', 'right/same'\]"
    with pytest.raises(ValueError, match=message):
        find_layer(model, "same", "exclude")
    with pytest.raises(ValueError, match=message):
        prune_channels(model, 0.5, exclude="same")
    with pytest.raises(ValueError, match=message):
        factorize(model, rank={"same": 1})


def test_one_layer_twice_is_refused():
    message = r"`rank` names the same layer twice.*'same' and 'whole/same'"
    with pytest.raises(ValueError, match=message):
        values_by_layer(nested(), {"same": 1, "whole/same": 2}, "rank")


@pytest.mark.parametrize("names", ["not", [3], None, 3])
def test_other_values_than_lists_of_names(names):
    with pytest.raises(ValueError, match="`exclude`"):
        find_layers(nested(), names, "exclude")


PLACES = ["deep/inner/only_inner", "inner/only_inner", "only_inner", "left"]


def kernels_by_path(model):
    inner = model.get_layer("deep").get_layer("inner")
    return {
        f"{place}/{layer.name}": to_numpy(layer.kernel.value)
        for place, graph in (
            ("left", model.get_layer("left")),
            ("inner", inner),
        )
        for layer in graph.layers
    }


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", [str, list])
def test_every_function_takes_every_name(name, kind):
    exclude = name if kind is str else [name]
    spared = {
        f"left/{end}" for end in ("same", "only_left") if name == "left"
    } or {"inner/only_inner"}
    narrow = prune_channels(nested(), 0.5, exclude=exclude)
    for path, kernel in kernels_by_path(narrow).items():
        assert kernel.shape[-1] == (8 if path in spared else 4), path

    x, y = vectors()
    model = nested()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    pruning = MagnitudePruning(0.5, end_step=0, exclude=exclude)
    model.fit(x, y, verbose=0, callbacks=[pruning])
    for path, kernel in kernels_by_path(model).items():
        assert np.mean(kernel == 0) == (0 if path in spared else 0.5), path
    sharing = WeightSharing({name: 3})
    model.fit(x, y, verbose=0, callbacks=[sharing])
    for path, kernel in kernels_by_path(model).items():
        distinct = len(np.unique(kernel))
        assert (distinct == 3) == (path in spared), path

    if name != "left":
        low = factorize(nested(), rank={name: 2})
        inner = low.get_layer("deep").get_layer("inner")
        assert inner.get_layer("only_inner_in").units == 2
        scores = np.arange(8.0)
        prune_channels(nested(), 0.5, importance={name: scores})
        small = prune_channels(nested(), {name: 0.25})
        widths = {
            path: kernel.shape[-1]
            for path, kernel in kernels_by_path(small).items()
        }
        assert widths.pop("inner/only_inner") == 6
        assert set(widths.values()) == {8}
