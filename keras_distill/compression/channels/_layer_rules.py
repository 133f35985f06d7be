"""The rule of each layer for channel pruning: which channels depend on which.

**To make another Keras layer prunable, write a rule here.** A rule is a
function with the decorator `@_rule(layers.X)`. It tells the `Coupling` which
weights are cut along which axis (`cut`), which channels a layer makes (`make`),
which can only be removed together (`join`), and which must stay (`pin`). It
returns the `Channels` of the layer's output tensor.

Rules of layers with one input tensor take `(coupling, layer, tensor,
channels)`. Rules of layers with several inputs take `(coupling, node, read)`:
`node` is the call of the layer, `read` has the `Channels` of each input.

A rule is found by the exact class: a subclass may compute something else. A
layer without a rule keeps all its channels. These have no rule on purpose:
layers whose outputs change with the set of channels (softmax,
LayerNormalization), grouped convolutions and recurrent layers.
"""

import keras
import numpy as np
from keras import layers

from keras_distill._graphs import _elementwise
from keras_distill._graphs._elementwise import is_elementwise
from keras_distill.compression._models import is_plain
from keras_distill.compression.channels._coupling import Channels

_RULES = {}  # for one input tensor
_MERGING_RULES = {}  # for several input tensors

_TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)


def rule_for(node):
    """Return the rule for the call of a layer or operation, None if none."""
    operation = node.operation
    if len(node.outputs) != 1:
        return None
    if not isinstance(operation, layers.Layer):
        elementwise = _elementwise.is_elementwise_operation(operation)
        return _merge if elementwise else None
    if len(node.input_tensors) > 1:
        return _MERGING_RULES.get(type(operation))
    rule = _RULES.get(type(operation))
    if rule is None or not is_plain(operation):
        return None
    return lambda coupling, node, read: rule(
        coupling, operation, *node.input_tensors, *read
    )


def _rule(*classes, rules=_RULES):
    """Register the decorated function as the rule of these layer classes."""

    def register(rule):
        rules.update(dict.fromkeys(classes, rule))
        return rule

    return register


def _merging_rule(*classes):
    return _rule(*classes, rules=_MERGING_RULES)


def _channel_axis(layer, tensor):
    """Return the axis on which a layer looks for channels."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    return len(tensor.shape) - 1


@_rule(
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Dense,
    *_TRANSPOSED,
)
def _project(coupling, layer, tensor, channels):
    """Dense and convolutions: each channel is a sum over all that go in."""
    axis = _channel_axis(layer, tensor)
    # From the end: kernels of convolutions have their windows first.
    input_axis, output_axis = -2, -1
    if type(layer) in _TRANSPOSED:
        input_axis, output_axis = -1, -2
    read = coupling.along(axis, tensor, channels)
    coupling.cut(layer, "kernel", input_axis, read)
    setting = "units" if type(layer) is layers.Dense else "filters"
    count = getattr(layer, setting)
    made = coupling.make(layer, "kernel", output_axis, count, setting)
    coupling.cut(layer, "bias", 0, made)
    return _activated(coupling, layer, axis, made)


@_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _project_depthwise(coupling, layer, tensor, channels):
    """Each channel comes from one that goes in."""
    axis = _channel_axis(layer, tensor)
    read = coupling.along(axis, tensor, channels)
    returned = np.repeat(read, layer.depth_multiplier)
    coupling.cut(layer, "kernel", -2, read)
    coupling.cut(layer, "bias", 0, returned)
    return _activated(coupling, layer, axis, returned)


@_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def _project_separable(coupling, layer, tensor, channels):
    """A depthwise convolution and one of width 1 in the same layer."""
    axis = _channel_axis(layer, tensor)
    read = coupling.along(axis, tensor, channels)
    between = np.repeat(read, layer.depth_multiplier)
    coupling.cut(layer, "depthwise_kernel", -2, read)
    coupling.cut(layer, "pointwise_kernel", -2, between)
    made = coupling.make(
        layer, "pointwise_kernel", -1, layer.filters, "filters"
    )
    coupling.cut(layer, "bias", 0, made)
    return _activated(coupling, layer, axis, made)


def _activated(coupling, layer, axis, numbers):
    channels = Channels(axis, numbers)
    if not is_elementwise(layer.activation):
        coupling.pin(channels)
    return channels


@_rule(layers.Embedding)
def _embed(coupling, layer, tensor, channels):
    """Each integer gets a row, whose entries are the channels."""
    coupling.pin(channels)
    made = coupling.make(layer, "embeddings", 1, layer.output_dim, "output_dim")
    return Channels(len(tensor.shape), made)


@_rule(layers.BatchNormalization)
def _normalize(coupling, layer, tensor, channels):
    """BatchNormalization: numbers of its own for each channel."""
    axis = layer.axis % len(tensor.shape)
    numbers = coupling.along(axis, tensor, channels)
    for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
        coupling.cut(layer, weight, 0, numbers)
    return Channels(axis, numbers)


@_rule(layers.PReLU)
def _bend(coupling, layer, tensor, channels):
    """PReLU: a slope of its own at every place, save along shared axes."""
    channels = coupling.same(layer, channels)
    if channels and channels.axis not in (layer.shared_axes or ()):
        coupling.cut(layer, "alpha", channels.axis - 1, channels.numbers)
    return channels


@_rule(*_elementwise.LAYERS)
def _pass_on(coupling, layer, tensor, channels):
    """The same function at every place."""
    return channels


@_rule(layers.Activation)
def _activate(coupling, layer, tensor, channels):
    """Activation, which may be one over all channels, such as softmax."""
    if is_elementwise(layer.activation):
        return channels
    return coupling.pin(channels)


@_rule(layers.Rescaling)
def _rescale(coupling, layer, tensor, channels):
    """One factor for all, or one for each channel and then it stays."""
    if np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return channels
    return coupling.pin(channels)


@_rule(
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
def _move_in_space(coupling, layer, tensor, channels):
    """Pooling, padding and the like: other places, the same channels."""
    if channels and channels.axis == _channel_axis(layer, tensor):
        return channels
    return coupling.pin(channels)


@_rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def _pool_globally(coupling, layer, tensor, channels):
    """No places are left."""
    channels = _move_in_space(coupling, layer, tensor, channels)
    if channels and not layer.keepdims:
        return Channels(1, channels.numbers)
    return channels


@_rule(layers.RepeatVector)
def _repeat(coupling, layer, tensor, channels):
    """RepeatVector: a new axis before the channels."""
    return channels and Channels(2, channels.numbers)


@_rule(layers.Flatten)
def _flatten(coupling, layer, tensor, channels):
    """Each channel comes to stand once for every place."""

    def arrange(places):
        if layer.data_format == "channels_first":
            places = np.moveaxis(places, 0, -1)
        return places.ravel()

    return _arrange(coupling, tensor, channels, arrange)


@_rule(layers.Permute)
def _permute(coupling, layer, tensor, channels):
    """Axes are counted from 1, after the batch."""
    axes = [axis - 1 for axis in layer.dims]
    return _arrange(coupling, tensor, channels, lambda p: p.transpose(axes))


@_rule(layers.Reshape)
def _reshape(coupling, layer, tensor, channels):
    """Reshape says how many channels there are, so it gets a new shape."""
    channels = _arrange(
        coupling, tensor, channels, lambda p: p.reshape(layer.target_shape)
    )
    channels = coupling.same(layer, channels)
    if channels:
        shape = layer.compute_output_shape(tensor.shape)[1:]
        coupling.shapes[layer] = (shape, channels)
    return channels


def _arrange(coupling, tensor, channels, arrange):
    """Follow channels to where `arrange` puts them, if on a single axis.

    Args:
        arrange: a function of an array of the tensor's shape without batch.
    """
    shape = tensor.shape[1:]
    if channels is None or None in shape:
        return coupling.pin(channels)
    along_axis = [1] * len(shape)
    along_axis[channels.axis - 1] = -1
    places = np.arange(len(channels.numbers)).reshape(along_axis)
    arranged = arrange(np.broadcast_to(places, shape))
    for axis in range(arranged.ndim):
        rows = np.moveaxis(arranged, axis, 0).reshape(arranged.shape[axis], -1)
        if len(rows) > 1 and (rows == rows[:, :1]).all():
            return Channels(axis + 1, channels.numbers[rows[:, 0]])
    return coupling.pin(channels)


@_merging_rule(
    layers.Add,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.Subtract,
)
def _merge(coupling, node, read):
    """Sums, products and the like, of tensors and constants, broadcast."""
    operands = _operands(node, read)
    rank = max(len(shape) for shape, _ in operands)
    # Counted from the end, where broadcasting starts.
    axes = {
        channels.axis - len(shape) for shape, channels in operands if channels
    }
    if len(axes) != 1:
        return coupling.pin(*read)
    (axis,) = axes
    sizes = [shape[axis] if len(shape) >= -axis else 1 for shape, _ in operands]
    # What has length 1 goes to all channels of the others.
    wide = [
        channels
        for (_, channels), size in zip(operands, sizes)
        if size != 1 or set(sizes) == {1}
    ]
    if None in wide:
        return coupling.pin(*read)
    return Channels(rank + axis, _joined(coupling, wide).numbers)


def _operands(node, read):
    """Return `(shape, Channels)` of all that an operation was given."""
    given = [*node.arguments.args, *node.arguments.kwargs.values()]
    if isinstance(node.operation, layers.Layer):
        given = node.input_tensors
    known = {id(t): channels for t, channels in zip(node.input_tensors, read)}
    return [
        (value.shape, known[id(value)])
        if isinstance(value, keras.KerasTensor)
        else (np.shape(value), None)
        for value in given
    ]


@_merging_rule(layers.Concatenate)
def _concatenate(coupling, node, read):
    """Channels in a row; or, along another axis, one and the same channels."""
    tensors = node.input_tensors
    axis = node.operation.axis % len(tensors[0].shape)
    axes = {channels.axis for channels in read if channels}
    if axes == {axis}:
        parts = map(coupling.along, [axis] * len(read), tensors, read)
        return Channels(axis, np.concatenate(list(parts)))
    if len(axes) != 1 or None in read:
        return coupling.pin(*read)
    return _joined(coupling, read)


@_merging_rule(layers.Attention)
def _attend(coupling, node, read):
    """Products of queries and keys: a channel counts if it is in both."""
    tensors, arguments = node.input_tensors, node.arguments
    # The list of them may be given by name.
    given = (*arguments.args, arguments.kwargs.get("inputs"))[0]
    if len(tensors) != len(given):  # There are masks.
        return coupling.pin(*read)
    axis = len(tensors[0].shape) - 1
    # Without keys, values are the keys.
    query, value, key = (
        coupling.along(axis, tensors[place], read[place])
        for place in (0, 1, -1)
    )
    coupling.join(query, key)
    return Channels(axis, value)


def _joined(coupling, several):
    for channels in several[1:]:
        coupling.join(several[0].numbers, channels.numbers)
    return several[0]
