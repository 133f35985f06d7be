"""Pruning to a number of MACs or parameters, and over all groups."""

import re

import keras
import numpy as np
import pytest
from common import to_numpy
from coupled_layers import IMAGE
from coupled_layers import WHOLE
from coupled_layers import classifier
from coupled_layers import widths
from hypothesis import given
from hypothesis import strategies
from keras import layers
from reference import pruning as reference

from keras_distill import compare
from keras_distill.compression import export_litert
from keras_distill.compression import prune_channels
from keras_distill.compression import quantize_aware
from keras_distill.compression.channels._removable_channels import (
    RemovableChannels,
)
from keras_distill.compression.channels._targets import cost
from keras_distill.compression.channels._targets import fewest_removed
from keras_distill.compression.channels._targets import removal_order

# Targets are arithmetic on the layers of a graph.
pytestmark = pytest.mark.one_backend("torch")


def figures(model):
    return compare([model], litert=()).to_dict()[model.name]


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("name", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_limit_is_reached_with_as_few_channels_as_possible(
    scope, name, share
):
    model = classifier()
    limit = int(share * figures(model)[name])
    arguments = {name: limit, "scope": scope}
    difference, small = reference.largest_difference(
        model,
        lambda m: prune_channels(m, importance=reference.scores, **arguments),
    )
    assert difference < 1e-4
    assert figures(small)[name] <= limit
    # With one channel more, it would be missed.
    channels = RemovableChannels(model, reference.scores)
    order = removal_order(channels, scope)
    kept = [channels.model_without(order[:n]) for n in range(len(order))]
    (number,) = (
        n for n in range(len(kept)) if widths(kept[n]) == widths(small)
    )
    assert figures(kept[number - 1])[name] > limit


def test_bytes_are_those_of_the_file_after_training(tmp_path):
    model = classifier()
    limit = cost(model, "bytes") - 500
    small = prune_channels(model, bytes=limit)
    assert sum(widths(small).values()) < sum(WHOLE.values())
    x = np.random.default_rng(0).normal(size=(32, *IMAGE)).astype("float32")
    trained = quantize_aware(small)
    trained.compile("adam", "mse")
    trained.fit(x, np.eye(3)[np.arange(32) % 3], epochs=3, verbose=0)
    with pytest.warns(UserWarning, match="LayerNormalization"):
        export_litert(trained, tmp_path / "a.tflite", "int8")
    # Files of one network differ by some bytes of padding.
    size = (tmp_path / "a.tflite").stat().st_size
    assert limit - 1_000 < size <= limit + 64
    with pytest.raises(ValueError, match="bytes as a LiteRT file in int8"):
        prune_channels(model, bytes=100)


def test_a_model_within_the_limit_is_only_copied():
    model = classifier()
    small = prune_channels(model, macs=10**9)
    assert widths(small) == WHOLE
    for one, two in zip(small.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_limit_that_cannot_be_reached_says_what_can():
    model = classifier()
    with pytest.raises(ValueError, match="can make has") as error:
        prune_channels(model, parameters=10)
    (smallest,) = re.findall(r"has ([0-9,]+) parameters", str(error.value))
    smallest = int(smallest.replace(",", ""))
    small = prune_channels(model, parameters=smallest)
    assert small.count_params() == smallest
    with pytest.raises(ValueError, match="can make has"):
        prune_channels(model, parameters=smallest - 1)


def test_the_lowest_scores_of_all_groups_go():
    """Scores count relative to the mean of their group."""
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="a")(inputs)
    outputs = layers.Dense(2)(layers.Dense(8, name="b")(x))
    model = keras.Model(inputs, outputs)
    scores = {
        "a": 1000 * np.array([1.0, 1, 1, 1, 1, 1, 1, 1]),
        "b": np.array([0.1, 0.1, 0.1, 0.1, 2, 2, 2, 2.0]),
    }
    small = prune_channels(model, 0.25, scores, scope="global")
    assert widths(small)["a"] == 8 and widths(small)["b"] == 4
    kept = to_numpy(small.get_layer("b").kernel)
    np.testing.assert_array_equal(
        kept, to_numpy(model.get_layer("b").kernel)[:, 4:]
    )
    # A group never loses its best channel.
    small = prune_channels(model, 0.99, scores, scope="global")
    assert widths(small)["a"] == widths(small)["b"] == 1
    nothing = dict.fromkeys("ab", np.zeros(8))
    small = prune_channels(model, 0.5, nothing, scope="global")
    assert sum(widths(small).values()) == 2 + 8


class Line:
    """Channels whose model is the number of those that are left."""

    def __init__(self, number):
        self.number = number

    def model_without(self, removed):
        return self.number - len(removed)


@given(
    costs=strategies.lists(strategies.integers(0, 50), min_size=1, max_size=80),
    limit=strategies.integers(1, 60),
)
def test_the_search_finds_the_first_that_fits(costs, limit):
    """However the costs fall: evenly, in steps, or all at once."""
    costs = sorted(costs)
    left = len(costs) - 1
    found = fewest_removed(
        Line(left), np.arange(left), lambda model: costs[model] / limit
    )
    fitting = [n for n in range(len(costs)) if costs[left - n] <= limit]
    assert found == (fitting[0] if fitting else None)


def test_the_search_takes_few_tries():
    tries = []

    def excess(model):
        tries.append(model)
        return (model / 1000) ** 2 / 0.3

    number = fewest_removed(Line(1000), np.arange(1000), excess)
    assert (1000 - number) ** 2 <= 300_000 < (1001 - number) ** 2
    assert len(tries) <= 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "`macs`, `parameters` and `bytes`. Received: {}"),
        ({"ratio": None}, "exactly one"),
        ({"ratio": 0.5, "macs": 10}, "exactly one"),
        ({"macs": 0.5}, "`macs` must be a whole number"),
        ({"parameters": 0}, "`parameters` must be"),
        ({"bytes": -1}, "`bytes` must be"),
        ({"ratio": 0.5, "scope": "layer"}, "`scope` must be 'group' or"),
        ({"ratio": {"last": 0.5}, "scope": "global"}, "requires scope='group'"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(classifier(), **arguments)


class Unknown(layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight((input_shape[-1],))

    def call(self, inputs):
        return self.scale * inputs


def test_macs_that_are_unknown():
    inputs = keras.Input((4,))
    outputs = layers.Dense(2)(Unknown()(layers.Dense(8)(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(outputs)))
    with pytest.raises(ValueError, match="MACs of some layers are unknown"):
        prune_channels(model, macs=10)
    small = prune_channels(model, parameters=model.count_params() - 5)
    assert small.count_params() < model.count_params()
