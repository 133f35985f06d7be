"""Multiply-accumulate operations (MACs) of one inference.

A kernel of n weights that is applied at p places takes n p of them. Counted is
what multiplies sums: convolutions, Dense, attention, recurrent layers, products
of tensors. Left out is all else, as in published figures: biases,
normalizations, activations, pooling, what is done entry by entry.
"""

import inspect
import math
import typing

import numpy as np
from keras import layers
from keras import ops

from keras_distill._graphs._elementwise import is_of_keras


class Macs(typing.NamedTuple):
    """A count.

    Attributes:
        all: MACs of one inference, None if a layer can't be counted.
        nonzero: those whose weight is not zero, None likewise.
        uncounted: names of the layers that can't be counted.
    """

    all: int | None
    nonzero: int | None
    uncounted: list


def count_macs(calls):
    """Return the MACs of a list of calls."""
    counted = nonzero = 0
    uncounted = {}
    for call in calls:
        products = _products(call)
        if products is None:
            operation = call.operation
            name = f"{operation.name} ({type(operation).__name__})"
            uncounted[name] = None
            continue
        for kernel, places in products:
            weights = np.asarray(ops.convert_to_numpy(kernel))
            counted += weights.size * places
            nonzero += np.count_nonzero(weights) * places
    if uncounted:
        return Macs(None, None, list(uncounted))
    return Macs(counted, int(nonzero), [])


def _products(call):
    """Return a list of `(kernel, places)`, None if they can't be told."""
    kind = type(call.operation)
    if kind not in _RULES and kind.__name__ in _BY_NAME and is_of_keras(kind):
        return _BY_NAME[kind.__name__](call)
    for parent in kind.__mro__:
        if parent in _RULES:
            return _RULES[parent](call)
    return None if getattr(call.operation, "weights", ()) else []


# A product of tensors has no kernel: as if one weight went everywhere.
_NO_KERNEL = np.ones(1)


def _nothing(call):
    return []


def _unknown(call):
    return None


def _dense(call):
    (tensor,) = call.inputs
    return [(call.operation.kernel, math.prod(tensor.shape[:-1]))]


def _convolution(call):
    layer = call.operation
    return [(layer.kernel, _places(layer, call.outputs[0]))]


def _transposed_convolution(call):
    layer = call.operation
    return [(layer.kernel, _places(layer, call.inputs[0]))]


def _separable_convolution(call):
    layer = call.operation
    places = _places(layer, call.outputs[0])
    return [(layer.depthwise_kernel, places), (layer.pointwise_kernel, places)]


def _places(layer, tensor):
    if layer.data_format == "channels_first":
        return math.prod(tensor.shape[2:])
    return math.prod(tensor.shape[1:-1])


def _einsum_dense(call):
    layer, (tensor,) = call.operation, call.inputs
    read, kernel = layer.equation.replace(" ", "").split("->")[0].split(",")
    places = [
        size for name, size in _sizes(read, tensor.shape) if name not in kernel
    ]
    return [(layer.kernel, math.prod(places))]


def _sizes(labels, shape):
    """Return `(label, size)` of each axis; of those under an ellipsis, `.`."""
    hidden = "." * (len(shape) - len(labels.replace("...", "")))
    return zip(labels.replace("...", hidden), shape, strict=True)


def _attention_heads(call):
    layer = call.operation
    named = _arguments(call)
    query, value = named["query"].shape, named["value"].shape
    if len(query) != 3 or layer.get_config().get("use_gate"):
        return None
    key = named.get("key")
    reads, answers = query[1], value[1]
    head = layer.num_heads * (layer.key_dim + layer.value_dim)
    return [
        (layer.query_dense.kernel, reads),
        (layer.key_dense.kernel, answers if key is None else key.shape[1]),
        (layer.value_dense.kernel, answers),
        (layer.output_dense.kernel, reads),
        (_NO_KERNEL, reads * answers * head),
    ]


def _attention(call):
    query, value, *key = _arguments(call)["inputs"]
    key = key[0] if key else value
    widths = query.shape[-1] + value.shape[-1]
    return [(_NO_KERNEL, query.shape[-2] * key.shape[-2] * widths)]


def _arguments(call):
    args, kwargs = call.arguments
    signature = inspect.signature(call.operation.call)
    return signature.bind(*args, **kwargs).arguments


def _recurrent(call):
    cell, steps = call.operation.cell, call.inputs[0].shape[1]
    return [(cell.kernel, steps), (cell.recurrent_kernel, steps)]


def _bidirectional(call):
    there = _products(call._replace(operation=call.operation.forward_layer))
    back = _products(call._replace(operation=call.operation.backward_layer))
    return None if None in (there, back) else there + back


def _dot(call):
    axes = call.operation.axes
    first = axes if isinstance(axes, int) else axes[0]
    sums = call.inputs[0].shape[first]
    return [(_NO_KERNEL, math.prod(call.outputs[0].shape) * sums)]


def _matmul(call):
    sums = call.inputs[0].shape[-1]
    return [(_NO_KERNEL, math.prod(call.outputs[0].shape) * sums)]


# A layer of one's own is counted as what it was derived from.
_RULES = {
    layers.Attention: _attention,
    layers.BatchNormalization: _nothing,
    layers.Bidirectional: _bidirectional,
    layers.Conv1D: _convolution,
    layers.Conv1DTranspose: _transposed_convolution,
    layers.Conv2D: _convolution,
    layers.Conv2DTranspose: _transposed_convolution,
    layers.Conv3D: _convolution,
    layers.Conv3DTranspose: _transposed_convolution,
    layers.Dense: _dense,
    layers.DepthwiseConv1D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    layers.Dot: _dot,
    layers.EinsumDense: _einsum_dense,
    layers.Embedding: _nothing,
    layers.GRU: _recurrent,
    layers.GroupNormalization: _nothing,
    layers.LSTM: _recurrent,
    layers.LayerNormalization: _nothing,
    layers.MultiHeadAttention: _attention_heads,
    layers.Normalization: _nothing,
    layers.PReLU: _nothing,
    layers.RMSNormalization: _nothing,
    layers.SeparableConv1D: _separable_convolution,
    layers.SeparableConv2D: _separable_convolution,
    layers.SimpleRNN: _recurrent,
}
_UNCOUNTED = (
    "AdditiveAttention",
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "Dot",
    "DotProductAttention",
    "Einsum",
    "Inner",
    "ReversibleEmbedding",
    "SeparableConv",
    "Tensordot",
)
# Operations have no public class. This is what theirs are called.
_BY_NAME = {
    "LayerScale": _nothing,
    "Matmul": _matmul,
    **dict.fromkeys(_UNCOUNTED, _unknown),
}
