"""The example that says how to make a new layer prunable, as it is written."""

import re

import keras
import numpy as np
from common import to_numpy
from keras import layers
from reference import pruning as reference

from keras_distill.compression import prune_channels
from keras_distill.compression.channels import _layer_rules
from keras_distill.compression.channels import _rule_registry


class Scale(layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],))

    def call(self, inputs):
        return inputs * self.scale


def scaled():
    inputs = keras.Input((5,))
    x = Scale(name="scale")(layers.Dense(8, name="hidden")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="top")(x))


def halve(model):
    return prune_channels(model, 0.5, importance={"hidden": np.arange(8.0)})


def test_the_example_of_a_rule(monkeypatch):
    # A layer without a rule keeps its channels.
    model = keras.Sequential([scaled(), layers.Dense(4), layers.Dense(2)])
    small = prune_channels(model, 0.5)
    assert small.layers[0].get_layer("hidden").units == 8
    (code,) = re.findall(
        r"^(    @rule\(Scale\)\n.*?)^\w", _layer_rules.__doc__, re.S | re.M
    )
    monkeypatch.setitem(_rule_registry.RULES, Scale, None)
    lines = [line[4:] for line in code.splitlines()]
    exec("\n".join(lines), vars(_layer_rules) | {"Scale": Scale})
    difference, small = reference.largest_difference(scaled(), halve)
    assert difference < 1e-5
    assert to_numpy(small.get_layer("scale").scale).shape == (4,)
