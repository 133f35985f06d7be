"""Ratios by layer. Coupled layers have the same ratio."""

import keras
import numpy as np
import pytest
from common import to_numpy
from coupled_layers import WHOLE
from coupled_layers import classifier
from coupled_layers import widths
from keras import layers
from reference import pruning as reference

from keras_distill.compression import factorize
from keras_distill.compression import prune_channels

# Ratios are arithmetic on the layers of a graph.
pytestmark = pytest.mark.one_backend("torch")


@pytest.mark.parametrize(
    "ratio, changed",
    [
        ({"last": 0.25}, dict(last=6)),
        ({"last": 0.25, "backbone/first": 0.5}, dict(last=6, first=4)),
        ({"first": 0.25, "last": 0}, dict(first=6)),
        # A group has the ratio of any of its layers.
        ({"second": 0.5}, dict(stem=4, second=4)),
        ({"stem": 0.5, "second": 0.5}, dict(stem=4, second=4)),
        ({"backbone": 0.5}, dict(stem=4, first=4, second=4)),
        (
            {"backbone": 0.5, "backbone/first": 0.25},
            dict(stem=4, first=6, second=4),
        ),
        ({"first": 0.999}, dict(first=1)),
        ({"first": 0}, {}),
    ],
)
def test_each_layer_loses_its_share(ratio, changed):
    model = classifier()
    difference, small = reference.largest_difference(
        model, lambda m: prune_channels(m, ratio, reference.scores)
    )
    assert difference < 1e-4
    assert widths(small) == WHOLE | changed


def test_excluded_layers_go_before_the_model_around_them():
    small = prune_channels(classifier(), {"backbone": 0.5}, exclude="first")
    assert widths(small) == WHOLE | dict(stem=4, second=4)


def test_the_channels_that_leave_are_those_of_one_ratio():
    model = classifier()
    every = prune_channels(model, 0.25)
    some = prune_channels(model, {"backbone": 0.25, "last": 0.25})
    for name in ("first", "second", "last"):
        kernels = [
            to_numpy(
                next(x for x in m._flatten_layers() if x.name == name).kernel
            )
            for m in (every, some)
        ]
        np.testing.assert_array_equal(*kernels)


@pytest.mark.parametrize(
    "ratio, message",
    [
        (
            {"stem": 0.5, "second": 0.25},
            r"same ratio.*'stem': 0.5, 'second': 0.25.*\['stem', 'second'\]",
        ),
        ({"stem": 0, "second": 0.25}, "same ratio.*'stem': 0.0"),
        (
            {"backbone": 0.5, "second": 0.25},
            "same ratio.*'backbone': 0.5, 'second': 0.25",
        ),
        ({"hidden": 0.5}, "without a channel.*'hidden': 0.5"),
        ({"last": 0.5, "logits": 0.5}, "without a channel.*{'logits': 0.5}"),
        ({"norm": 0.5}, "without a channel.*'norm'"),
        ({"lest": 0.5}, r"`ratio`.*'lest'.*mean \['last'"),
        ({"last": 1}, r"`ratio` must be below 1.*ratio\['last'\]=1"),
        ({"last": "half"}, r"`ratio\['last'\]` must be a number"),
        ({"first": 0.5, "backbone/first": 0.5}, "names the same layer twice"),
        ({}, "must name at least one layer.*{}"),
        ({3: 0.5}, "must name layers by strings.*3"),
    ],
)
def test_refused_ratios(ratio, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(classifier(), ratio)


def test_a_layer_that_is_excluded_or_has_no_score_loses_nothing():
    message = "without a channel.*'stem': 0.5"
    with pytest.raises(ValueError, match=message):
        # They are coupled.
        prune_channels(classifier(), {"stem": 0.5}, exclude="second")
    with pytest.raises(ValueError, match=message):
        prune_channels(classifier(), {"stem": 0.5}, importance="batch_norm")


class Composite(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(8, name="inner")

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 8)


def test_layers_inside_others_are_not_replaced_and_not_passed_over():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(Composite(name="own")(inputs)))
    with pytest.raises(ValueError, match=r"without a channel.*'own/inner'"):
        prune_channels(model, {"own/inner": 0.5})
    with pytest.raises(ValueError, match="inside a layer of another class"):
        factorize(model, rank={"own/inner": 2})
