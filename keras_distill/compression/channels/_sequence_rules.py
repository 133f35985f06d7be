"""The rules of recurrent layers and of attention; see `_layer_rules.py`."""

import numpy as np
from keras import layers

from keras_distill._graphs._elementwise import is_elementwise
from keras_distill._graphs._walk import has_float_kernel
from keras_distill.compression.channels._coupling import Channels
from keras_distill.compression.channels._rule_registry import merging_rule
from keras_distill.compression.channels._rule_registry import rule

# The gates of recurrent layers, whose weights lie side by side in each kernel.
_GATES = {layers.GRU: 3, layers.LSTM: 4, layers.SimpleRNN: 1}


@rule(*_GATES)
def _recurrent(coupling, layer, tensor, channels):
    """The units of a recurrent layer, which read all units of the last step."""
    if not _unit_by_unit(layer):
        return coupling.pin(channels)
    read = coupling.along(2, tensor, channels)
    return Channels(1 + layer.return_sequences, _units(coupling, layer, read))


@rule(layers.Bidirectional)
def _bidirectional(coupling, layer, tensor, channels):
    """Two recurrent layers: Keras requires as many units in both directions."""
    both = layer.forward_layer, layer.backward_layer
    if not all(type(x) in _GATES and _unit_by_unit(x) for x in both):
        return coupling.pin(channels)
    read = coupling.along(2, tensor, channels)
    units, backward = (_units(coupling, x, read) for x in both)
    coupling.join(units, backward)
    if layer.merge_mode == "concat":
        units = np.concatenate([units, backward])
    return Channels(1 + layer.return_sequences, units)


def _unit_by_unit(layer):
    """Return whether a recurrent layer computes each unit on its own.

    The state of a stateful layer is not copied.
    """
    activations = layer.activation, getattr(layer, "recurrent_activation", None)
    return not layer.stateful and all(
        is_elementwise(activation) for activation in activations if activation
    )


def _units(coupling, layer, read):
    """Return the units of a recurrent layer; each gate has weights for all."""
    gates = _GATES[type(layer)]
    made = coupling.make(
        layer,
        ("cell.kernel", "cell.recurrent_kernel"),
        -1,
        layer.units,
        "units",
        copies=gates,
    )
    coupling.cut(layer, "cell.kernel", 0, read)
    coupling.cut(layer, "cell.recurrent_kernel", 0, made)
    if layer.use_bias:
        coupling.cut(layer, "cell.bias", -1, np.tile(made, gates))
    return made


@merging_rule(layers.MultiHeadAttention)
def _multi_head_attention(coupling, node, read):
    """The heads are channels inside the layer. No other layer reads them.

    The output has the channels of the query, because Keras gives it as many.
    """
    layer = node.operation
    projections = "query_dense", "value_dense", "key_dense"
    kernels = tuple(f"{projection}.kernel" for projection in projections)
    inner = layer.output_dense, *(getattr(layer, x) for x in projections)
    if not all(map(has_float_kernel, inner)):
        return coupling.pin(*read)
    heads = coupling.make(layer, kernels, -2, layer.num_heads, "num_heads")
    if layer.query_dense.bias is not None:
        for projection in projections:
            coupling.cut(layer, f"{projection}.bias", -2, heads)
    coupling.cut(layer, "output_dense.kernel", 0, heads)
    query, value, key = _read_by_attention(coupling, node, read)
    for kernel, numbers in zip(kernels, (query, value, key)):
        coupling.cut(layer, kernel, 0, numbers)
    if layer.get_config()["output_shape"] is not None:
        return None
    coupling.cut(layer, "output_dense.kernel", -1, query)
    coupling.cut(layer, "output_dense.bias", 0, query)
    return Channels(len(node.outputs[0].shape) - 1, query)


def _read_by_attention(coupling, node, read):
    """Return the numbers of query, value and key. Masks keep their channels."""
    given = dict(zip(("query", "value", "key"), node.arguments.args))
    given |= node.arguments.kwargs
    query, value, key = (given.get(x) for x in ("query", "value", "key"))
    tensors = [query, value, value if key is None else key]
    known = {id(t): channels for t, channels in zip(node.input_tensors, read)}
    masks = known.keys() - set(map(id, tensors))
    coupling.pin(*map(known.get, masks))
    return [
        coupling.along(len(tensor.shape) - 1, tensor, known.get(id(tensor)))
        for tensor in tensors
    ]


@merging_rule(layers.Attention)
def _attention(coupling, node, read):
    """Queries and keys are multiplied, so their channels are joined."""
    tensors, arguments = node.input_tensors, node.arguments
    # The list of inputs may be a keyword argument.
    given = (*arguments.args, arguments.kwargs.get("inputs"))[0]
    if len(tensors) != len(given):  # There are masks.
        return coupling.pin(*read)
    axis = len(tensors[0].shape) - 1
    # Without keys, the values are used as keys.
    query, value, key = (
        coupling.along(axis, tensors[index], read[index])
        for index in (0, 1, -1)
    )
    coupling.join(query, key)
    return Channels(axis, value)
