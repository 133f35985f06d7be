"""Layers that are several operations in a file, with a range for each.

What they read was rounded by the layer before, and what they return is rounded
behind them, as for any layer.
"""

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill import _arguments
from keras_distill.compression.litert._quantized_layers import FakeQuantization
from keras_distill.compression.litert._quantized_layers import (
    QuantizedEinsumDense,
)


class _WithRanges:
    """A layer with a range, a FakeQuantization, for each of `_names()`.

    Args:
        momentum: as in FakeQuantization.
        fixed_ranges: `{name: (minimum, maximum)}` of ranges that stay as they
            are, or None.
        **kwargs: arguments of the layer.
    """

    def __init__(self, *, momentum=0.99, fixed_ranges=None, **kwargs):
        super().__init__(**kwargs)
        self.momentum = _arguments.fraction("momentum", momentum)
        self.fixed_ranges = fixed_ranges
        self.ranges = {
            name: FakeQuantization(
                self.momentum,
                (fixed_ranges or {}).get(name),
                name=f"{name}_range",
                dtype="float32",
            )
            for name in self._names()
        }

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "fixed_ranges": self.fixed_ranges,
        }

    def as_constant(self):
        """Return the layer for a file: its ranges are fixed."""
        tracked = {
            name: layer.tracked_range() for name, layer in self.ranges.items()
        }
        return type(self).from_config(
            self.get_config() | {"fixed_ranges": tracked}
        )

    def plain_weights(self):
        """Return the weights that are not those of the ranges."""
        of_ranges = {
            id(weight)
            for layer in self.ranges.values()
            for weight in layer.weights
        }
        return [w for w in self.weights if id(w) not in of_ranges]

    def constant_weights(self):
        """Return the arrays that `as_constant` takes as its weights."""
        return [np.array(ops.convert_to_numpy(w)) for w in self.plain_weights()]

    def _build_ranges(self):
        for layer in self.ranges.values():
            layer.build(None)

    def _rounded(self, name, inputs, training):
        return self.ranges[name](inputs, training=training)


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedLayerNormalization(_WithRanges, layers.LayerNormalization):
    """A LayerNormalization over the last axis.

    The variance stays in floats, with what is multiplied by its root: that of
    one token may be thousands of times that of another, and 255 steps from
    zero to the largest would leave nothing of the small ones.
    """

    why_floats = "8 bits can't hold the variances of a LayerNormalization"

    def _names(self):
        both = self.center and self.scale
        return ["mean", "centered", "normalized", *(["scaled"] if both else [])]

    def build(self, input_shape):
        super().build(input_shape)
        self._build_ranges()

    def call(self, inputs, training=None):
        mean = ops.mean(inputs, axis=-1, keepdims=True)
        mean = self._rounded("mean", mean, training)
        centered = self._rounded("centered", inputs - mean, training)
        variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
        outputs = centered * ops.rsqrt(variance + self.epsilon)
        outputs = self._rounded("normalized", outputs, training)
        if self.gamma is not None:
            outputs = outputs * self.gamma
        if "scaled" in self.ranges:
            outputs = self._rounded("scaled", outputs, training)
        return outputs if self.beta is None else outputs + self.beta

    @staticmethod
    def fits(layer, node):
        """Return whether a layer can become one of these."""
        rank = len(node.input_tensors[0].shape)
        axis = [a % rank for a in np.atleast_1d(layer.axis)]
        return axis == [rank - 1] and not layer.rms_scaling


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedMultiHeadAttention(_WithRanges, layers.MultiHeadAttention):
    """A MultiHeadAttention on sequences, with rounded kernels."""

    def _names(self):
        return ["query", "key", "value", "scores", "scaled", "context"]

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self._build_ranges()
        if self.fixed_ranges is None:
            for layer in self._projections():
                layer.__class__ = QuantizedEinsumDense

    def _projections(self):
        names = ("query_dense", "key_dense", "value_dense", "output_dense")
        return [getattr(self, name) for name in names]

    def constant_weights(self):
        rounded = {
            id(layer.kernel): layer.rounded_kernel()
            for layer in self._projections()
        }
        return [
            np.array(ops.convert_to_numpy(rounded.get(id(weight), weight)))
            for weight in self.plain_weights()
        ]

    def _compute_attention(
        self,
        query,
        key,
        value,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        **kwargs,
    ):
        # (batch, length, heads, width)
        query = self._rounded("query", query, training)
        key = self._rounded("key", key, training)
        value = self._rounded("value", value, training)
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key)
        scores = self._rounded("scores", scores, training)
        scores = scores / float(self.key_dim) ** 0.5
        scores = self._rounded("scaled", scores, training)
        weights = self._masked_softmax(scores, attention_mask)
        if self.dropout > 0:
            weights = self._dropout_layer(weights, training=training)
        context = ops.einsum("bhqk,bkhd->bqhd", weights, value)
        return self._rounded("context", context, training), weights

    @staticmethod
    def fits(layer, node):
        """Return whether a layer can become one of these."""
        ranks = [len(tensor.shape) for tensor in node.input_tensors[:2]]
        return (
            ranks == [3] * len(ranks)
            and len(node.outputs) == 1
            and not layer.get_config().get("use_gate")
        )


BLOCKS = {
    layers.LayerNormalization: QuantizedLayerNormalization,
    layers.MultiHeadAttention: QuantizedMultiHeadAttention,
}


def block(layer, momentum):
    """Return the layer with ranges for a layer in `BLOCKS`."""
    config = layer.get_config() | {"dtype": "float32", "momentum": momentum}
    return BLOCKS[type(layer)].from_config(config)
