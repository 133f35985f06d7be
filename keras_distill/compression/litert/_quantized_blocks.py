"""Layers that become several operations in a file, with a range for each.

As for any layer, the layer before has rounded the inputs, and the outputs are
rounded by a FakeQuantization after the layer.
"""

from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill import _arguments
from keras_distill._typing import Tensor
from keras_distill.compression.litert._quantized_layers import FakeQuantization
from keras_distill.compression.litert._quantized_layers import (
    QuantizedEinsumDense,
)


class _WithRanges(layers.Layer):
    """A layer with a FakeQuantization for each name in `_names()`.

    Args:
        momentum: as in FakeQuantization.
        fixed_ranges: `{name: (minimum, maximum)}`, the ranges that are not
            tracked, or None.
        **kwargs: arguments of the layer.
    """

    def __init__(
        self,
        *,
        momentum: float = 0.99,
        fixed_ranges: dict[str, tuple[float, float]] | None = None,
        **kwargs: Any,
    ) -> None:
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

    def _names(self) -> list[str]:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "fixed_ranges": self.fixed_ranges,
        }

    def as_constant(self) -> layers.Layer:
        """Return the layer for a file, with fixed ranges."""
        tracked = {
            name: layer.tracked_range() for name, layer in self.ranges.items()
        }
        return type(self).from_config(
            self.get_config() | {"fixed_ranges": tracked}
        )

    def plain_weights(self) -> list[keras.Variable]:
        """Return the weights without those of the ranges."""
        of_ranges = {
            id(weight)
            for layer in self.ranges.values()
            for weight in layer.weights
        }
        return [w for w in self.weights if id(w) not in of_ranges]

    def constant_weights(self) -> list[np.ndarray]:
        """Return the weights for the layer that `as_constant` returns."""
        return [np.array(ops.convert_to_numpy(w)) for w in self.plain_weights()]

    def _build_ranges(self):
        for layer in self.ranges.values():
            layer.build(None)

    def _rounded(self, name, inputs, training):
        return self.ranges[name](inputs, training=training)


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedLayerNormalization(_WithRanges, layers.LayerNormalization):
    """A LayerNormalization over the last axis.

    The variance and the products with its root stay in floats. The variance of
    one token may be thousands of times that of another, and with 255 steps,
    small variances would be rounded to zero.
    """

    why_floats = "8 bits cannot represent the variances of LayerNormalization"

    def _names(self):
        both = self.center and self.scale
        return ["mean", "centered", "normalized", *(["scaled"] if both else [])]

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._build_ranges()

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
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
    def fits(layer: layers.Layer, node: Any) -> bool:
        """Return whether this class can replace a layer, given its call."""
        rank = len(node.input_tensors[0].shape)
        axis = [a % rank for a in np.atleast_1d(layer.axis)]
        return axis == [rank - 1] and not layer.rms_scaling


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedMultiHeadAttention(_WithRanges, layers.MultiHeadAttention):
    """A MultiHeadAttention on sequences, with rounded kernels and values."""

    def _names(self):
        return ["query", "key", "value", "scores", "scaled", "context"]

    def build(
        self, query_shape: Any, value_shape: Any, key_shape: Any = None
    ) -> None:
        super().build(query_shape, value_shape, key_shape)
        self._build_ranges()
        if self.fixed_ranges is None:
            for layer in self._projections():
                layer.__class__ = QuantizedEinsumDense

    def _projections(self):
        names = ("query_dense", "key_dense", "value_dense", "output_dense")
        return [getattr(self, name) for name in names]

    def constant_weights(self) -> list[np.ndarray]:
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
    def fits(layer: layers.Layer, node: Any) -> bool:
        """Return whether this class can replace a layer, given its call."""
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


def block(layer: layers.Layer, momentum: float) -> layers.Layer:
    """Return the quantized layer for a layer whose class is in `BLOCKS`."""
    config = layer.get_config() | {"dtype": "float32", "momentum": momentum}
    return BLOCKS[type(layer)].from_config(config)
