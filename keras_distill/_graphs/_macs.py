"""Multiply-accumulate operations (MACs) of one inference.

A kernel with n weights that is applied at p positions takes n * p MACs. The
count includes convolutions, Dense, attention, recurrent layers and products of
tensors. As in published numbers, it does not include biases, normalizations,
activations, pooling and elementwise operations.

To count another layer, add a function to `_RULES`: it takes the `Call` of the
layer and returns a list of `(kernel, positions)`, or None if the MACs are
unknown.
"""

import inspect
import math
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill._graphs._elementwise import is_elementwise_layer
from keras_distill._graphs._elementwise import is_of_keras
from keras_distill._graphs._inference import calls_for


class Macs(NamedTuple):
    """The MACs of a model.

    Attributes:
        all: MACs of one inference, None if those of a layer are unknown.
        nonzero: MACs whose weight is not zero, None in the same case.
        uncounted: names of the layers whose MACs are unknown.
    """

    all: int | None
    nonzero: int | None
    uncounted: list[str]


def count_macs(calls: Iterable[Any]) -> Macs:
    """Return the MACs of a list of calls, as `infer` returns them."""
    counted = nonzero = 0
    uncounted: dict[str, None] = {}
    for call in calls:
        products = _products(call)
        if products is None:
            operation = call.operation
            name = f"{operation.name} ({type(operation).__name__})"
            uncounted[name] = None
            continue
        for kernel, positions in products:
            weights = np.asarray(ops.convert_to_numpy(kernel))
            counted += weights.size * positions
            nonzero += np.count_nonzero(weights) * positions
    if uncounted:
        return Macs(None, None, list(uncounted))
    return Macs(counted, int(nonzero), [])


def _products(call):
    """Return a list of `(kernel, positions)`, None if they are unknown."""
    kind = type(call.operation)
    if kind not in _RULES and kind.__name__ in _BY_NAME and is_of_keras(kind):
        return _BY_NAME[kind.__name__](call)
    for parent in kind.__mro__:
        if parent in _RULES:
            return _RULES[parent](call)
    if is_elementwise_layer(call.operation):
        return []
    return None if getattr(call.operation, "weights", ()) else []


# A product of tensors has no kernel. It counts like a kernel of one weight.
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
    return [(layer.kernel, _positions(layer, call.outputs[0]))]


def _transposed_convolution(call):
    layer = call.operation
    return [(layer.kernel, _positions(layer, call.inputs[0]))]


def _separable_convolution(call):
    layer = call.operation
    positions = _positions(layer, call.outputs[0])
    return [
        (layer.depthwise_kernel, positions),
        (layer.pointwise_kernel, positions),
    ]


def _positions(layer, tensor):
    if layer.data_format == "channels_first":
        return math.prod(tensor.shape[2:])
    return math.prod(tensor.shape[1:-1])


def _einsum_dense(call):
    layer, (tensor,) = call.operation, call.inputs
    read, kernel = layer.equation.replace(" ", "").split("->")[0].split(",")
    sizes = [
        size for name, size in _sizes(read, tensor.shape) if name not in kernel
    ]
    return [(layer.kernel, math.prod(sizes))]


def _sizes(labels, shape):
    """Return `(label, size)` of each axis, with `.` for axes in an ellipsis."""
    hidden = "." * (len(shape) - len(labels.replace("...", "")))
    return zip(labels.replace("...", hidden), shape, strict=True)


def _attention_heads(call):
    layer = call.operation
    named = _arguments(call)
    query, value = named["query"].shape, named["value"].shape
    if len(query) != 3 or layer.get_config().get("use_gate"):
        return None
    key = named.get("key")
    queries, values = query[1], value[1]
    keys = values if key is None else key.shape[1]
    head = layer.num_heads * (layer.key_dim + layer.value_dim)
    return [
        (layer.query_dense.kernel, queries),
        (layer.key_dense.kernel, keys),
        (layer.value_dense.kernel, values),
        (layer.output_dense.kernel, queries),
        (_NO_KERNEL, queries * values * head),
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
    layer = call.operation
    forward = _products(call._replace(operation=layer.forward_layer))
    backward = _products(call._replace(operation=layer.backward_layer))
    return None if None in (forward, backward) else forward + backward


def _time_distributed(call):
    """Return the products of one step, for each step."""
    tensor = call.inputs[0]
    one_step = keras.KerasTensor((1, *tensor.shape[2:]), tensor.dtype)
    products = []
    for inner in calls_for(call.operation.layer, one_step):
        found = _products(inner)
        if found is None:
            return None
        products += [(kernel, tensor.shape[1] * at) for kernel, at in found]
    return products


def _reversible_embedding(call):
    layer = call.operation
    if not _arguments(call).get("reverse"):
        return []
    tied = layer.tie_weights
    kernel = layer.embeddings if tied else layer.reverse_embeddings
    return [(kernel, math.prod(call.inputs[0].shape[:-1]))]


def _dot(call):
    axes = call.operation.axes
    first = axes if isinstance(axes, int) else axes[0]
    sums = call.inputs[0].shape[first]
    return [(_NO_KERNEL, math.prod(call.outputs[0].shape) * sums)]


def _matmul(call):
    sums = call.inputs[0].shape[-1]
    return [(_NO_KERNEL, math.prod(call.outputs[0].shape) * sums)]


# A custom layer is counted like the Keras layer that it is derived from.
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
    layers.ReversibleEmbedding: _reversible_embedding,
    layers.SeparableConv1D: _separable_convolution,
    layers.SeparableConv2D: _separable_convolution,
    layers.SimpleRNN: _recurrent,
    layers.TimeDistributed: _time_distributed,
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
    "SeparableConv",
    "Tensordot",
)
# The classes of operations are not public. These are their names.
_BY_NAME = {
    "LayerScale": _nothing,
    "Matmul": _matmul,
    **dict.fromkeys(_UNCOUNTED, _unknown),
}
