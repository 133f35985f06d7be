"""The rule of each layer for channel pruning: which channels depend on which.

**To make another Keras layer prunable, write a rule here**, or in
`_sequence_rules.py` for recurrent layers and attention. A rule is a function
with the decorator `@rule(layers.X)`, or `@merging_rule(layers.X)` if the layer
has several inputs. It is called once for each call of such a layer and asks or
tells the `Coupling`

- `along`: which channels lie on an axis of the input,
- `make`: which channels the layer makes, with which kernel,
- `cut`: which axes of its weights are cut together with which channels,
- `join`: which channels can only be removed together,
- `pin`: which channels must be kept.

It returns the `Channels` of the output tensor: their axis and their numbers.
`None` means that the output has no channels to remove. If a rule returns
`None`, it must first `pin` the channels that it reads, or `cut` the weights
that read them. `coupling.pin(...)` returns `None`, so `return
coupling.pin(channels)` does both.

A rule for one input takes `(coupling, layer, tensor, channels)`: the input
tensor and its `Channels` (or `None`). A mask of time steps is no input. A
merging rule takes `(coupling, node, read)`: the call of the layer, and the
`Channels` (or `None`) of each tensor in `node.input_tensors`.

Example, for a layer that multiplies each channel by one weight:

    @rule(Scale)
    def _scale(coupling, layer, tensor, channels):
        axis = len(tensor.shape) - 1
        numbers = coupling.along(axis, tensor, channels)
        coupling.cut(layer, "scale", 0, numbers)  # the attribute and its axis
        return Channels(axis, numbers)

Rules are found by the exact class, because a subclass may compute something
else. A layer without a rule keeps all its channels. Some layers have no rule on
purpose: layers whose outputs change with the set of channels (softmax) and
grouped convolutions. LayerNormalization has a rule that is used on request.

Test a new rule in `tests/compression/test_channels.py`: add a model with the
layer there.
"""

import functools
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import tree

from keras_distill._graphs._elementwise import LAYERS
from keras_distill._graphs._elementwise import is_elementwise
from keras_distill._graphs._elementwise import is_elementwise_operation
from keras_distill.compression._models import has_ungrouped_float_kernel
from keras_distill.compression.channels import _sequence_rules  # noqa: F401
from keras_distill.compression.channels._coupling import Channels
from keras_distill.compression.channels._coupling import Rule
from keras_distill.compression.channels._rule_registry import MERGING_RULES
from keras_distill.compression.channels._rule_registry import ON_REQUEST
from keras_distill.compression.channels._rule_registry import RULES
from keras_distill.compression.channels._rule_registry import merging_rule
from keras_distill.compression.channels._rule_registry import rule

# The import of `_sequence_rules` registers its rules.

# Their mean and variance are over all channels.
_OVER_CHANNELS = {
    layers.LayerNormalization: ("gamma", "beta"),
    layers.RMSNormalization: ("scale",),
}

_TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)


def rule_for(node: Any, through_layer_norm: bool = False) -> Rule | None:
    """Return the rule for the call of a layer or operation, None if none.

    Args:
        node: a node of Keras, the call of a layer or operation.
        through_layer_norm: as in `prune_channels`.
    """
    operation = node.operation
    if len(node.outputs) != 1:
        return None
    if not isinstance(operation, layers.Layer):
        return _merge if is_elementwise_operation(operation) else None
    if len(_without_mask(node)) > 1:
        return MERGING_RULES.get(type(operation))
    found = RULES.get(type(operation))
    if through_layer_norm and found is None:
        found = ON_REQUEST.get(type(operation))
    if found is None or not has_ungrouped_float_kernel(operation):
        return None
    return functools.partial(_apply, found)


def _without_mask(node):
    """Return the input tensors of a call, without its mask of time steps."""
    mask = node.arguments.kwargs.get("mask")
    return [tensor for tensor in node.input_tensors if tensor is not mask]


def _apply(found, coupling, node, read):
    # The tensor is the first argument, and the mask a keyword.
    first, *masks = read
    coupling.pin(*masks)
    return found(coupling, node.operation, node.input_tensors[0], first)


def _channel_axis(layer, tensor):
    """Return the channel axis that a layer assumes."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    return len(tensor.shape) - 1


@rule(
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Dense,
    *_TRANSPOSED,
)
def _dense_or_convolution(coupling, layer, tensor, channels):
    """Dense and convolutions: each output channel reads all input channels."""
    axis = _channel_axis(layer, tensor)
    # Counted from the end, because kernels of convolutions begin with their
    # window.
    input_axis, output_axis = -2, -1
    if type(layer) in _TRANSPOSED:
        input_axis, output_axis = -1, -2
    read = coupling.along(axis, tensor, channels)
    coupling.cut(layer, "kernel", input_axis, read)
    setting = "units" if type(layer) is layers.Dense else "filters"
    count = getattr(layer, setting)
    made = coupling.make(layer, ("kernel",), output_axis, count, setting)
    coupling.cut(layer, "bias", 0, made)
    return _activated(coupling, layer, axis, made)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise_convolution(coupling, layer, tensor, channels):
    """Each output channel reads one input channel."""
    axis = _channel_axis(layer, tensor)
    read = coupling.along(axis, tensor, channels)
    returned = np.repeat(read, layer.depth_multiplier)
    coupling.cut(layer, "kernel", -2, read)
    coupling.cut(layer, "bias", 0, returned)
    return _activated(coupling, layer, axis, returned)


@rule(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable_convolution(coupling, layer, tensor, channels):
    """A depthwise and a pointwise convolution in one layer."""
    axis = _channel_axis(layer, tensor)
    read = coupling.along(axis, tensor, channels)
    between = np.repeat(read, layer.depth_multiplier)
    coupling.cut(layer, "depthwise_kernel", -2, read)
    coupling.cut(layer, "pointwise_kernel", -2, between)
    made = coupling.make(
        layer, ("pointwise_kernel",), -1, layer.filters, "filters"
    )
    coupling.cut(layer, "bias", 0, made)
    return _activated(coupling, layer, axis, made)


def _activated(coupling, layer, axis, numbers):
    channels = Channels(axis, numbers)
    if not is_elementwise(layer.activation):
        coupling.pin(channels)
    return channels


@rule(layers.Embedding)
def _embedding(coupling, layer, tensor, channels):
    """The columns of the embedding matrix are the channels."""
    coupling.pin(channels)
    made = coupling.make(
        layer, ("embeddings",), 1, layer.output_dim, "output_dim"
    )
    return Channels(len(tensor.shape), made)


@rule(layers.BatchNormalization)
def _batch_normalization(coupling, layer, tensor, channels):
    """Each channel has its own scale, offset and statistics."""
    axis = layer.axis % len(tensor.shape)
    numbers = coupling.along(axis, tensor, channels)
    for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
        coupling.cut(layer, weight, 0, numbers)
    return Channels(axis, numbers)


@rule(*_OVER_CHANNELS, rules=ON_REQUEST)
def _normalization_over_channels(coupling, layer, tensor, channels):
    """The mean and the variance become those of the channels that are kept."""
    axis = len(tensor.shape) - 1
    if [x % len(tensor.shape) for x in tree.flatten(layer.axis)] != [axis]:
        return coupling.pin(channels)
    numbers = coupling.along(axis, tensor, channels)
    for weight in _OVER_CHANNELS[type(layer)]:
        coupling.cut(layer, weight, 0, numbers)
    return Channels(axis, numbers)


@rule(layers.PReLU)
def _prelu(coupling, layer, tensor, channels):
    """PReLU: one slope for each position, except along the shared axes."""
    channels = coupling.same_in_all_calls(layer, channels)
    if channels and channels.axis not in (layer.shared_axes or ()):
        coupling.cut(layer, "alpha", channels.axis - 1, channels.numbers)
    return channels


@rule(*LAYERS)
def _elementwise(coupling, layer, tensor, channels):
    """Elementwise layers do not change the channels."""
    return channels


@rule(layers.Activation)
def _activation(coupling, layer, tensor, channels):
    """Activations such as softmax need all channels, and keep them."""
    if is_elementwise(layer.activation):
        return channels
    return coupling.pin(channels)


@rule(layers.Rescaling)
def _rescaling(coupling, layer, tensor, channels):
    """Channels are kept if each has its own factor or offset."""
    if np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return channels
    return coupling.pin(channels)


@rule(
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
def _pooling_or_padding(coupling, layer, tensor, channels):
    """Layers that work on each channel on its own."""
    if channels and channels.axis == _channel_axis(layer, tensor):
        return channels
    return coupling.pin(channels)


@rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def _global_pooling(coupling, layer, tensor, channels):
    """Global pooling removes all axes but the channels."""
    channels = _pooling_or_padding(coupling, layer, tensor, channels)
    if channels and not layer.keepdims:
        return Channels(1, channels.numbers)
    return channels


@rule(layers.RepeatVector)
def _repeat_vector(coupling, layer, tensor, channels):
    """RepeatVector adds an axis before the channels."""
    return channels and Channels(2, channels.numbers)


@rule(layers.Flatten)
def _flatten(coupling, layer, tensor, channels):
    """After Flatten, each channel occurs once for each position."""

    def flatten(array):
        if layer.data_format == "channels_first":
            array = np.moveaxis(array, 0, -1)
        return array.ravel()

    return _rearranged(coupling, tensor, channels, flatten)


@rule(layers.Permute)
def _permute(coupling, layer, tensor, channels):
    """The axes in `dims` are counted from 1, after the batch axis."""
    axes = [axis - 1 for axis in layer.dims]
    return _rearranged(coupling, tensor, channels, lambda a: a.transpose(axes))


@rule(layers.Reshape)
def _reshape(coupling, layer, tensor, channels):
    """The target shape contains the number of channels, so it is cut too."""
    channels = _rearranged(
        coupling, tensor, channels, lambda a: a.reshape(layer.target_shape)
    )
    channels = coupling.same_in_all_calls(layer, channels)
    if channels:
        shape = layer.compute_output_shape(tensor.shape)[1:]
        coupling.shapes[layer] = (shape, channels)
    return channels


def _rearranged(coupling, tensor, channels, rearrange):
    """Return the channels after a tensor was rearranged.

    They are kept if they do not lie on a single axis afterwards.

    Args:
        rearrange: a function of an array of the tensor's shape without batch.
    """
    shape = tensor.shape[1:]
    if channels is None or None in shape:
        return coupling.pin(channels)
    along_axis = [1] * len(shape)
    along_axis[channels.axis - 1] = -1
    # Each entry is the index of its channel.
    indices = np.arange(len(channels.numbers)).reshape(along_axis)
    indices = rearrange(np.broadcast_to(indices, shape))
    for axis in range(indices.ndim):
        rows = np.moveaxis(indices, axis, 0).reshape(indices.shape[axis], -1)
        if len(rows) > 1 and (rows == rows[:, :1]).all():
            return Channels(axis + 1, channels.numbers[rows[:, 0]])
    return coupling.pin(channels)


@merging_rule(
    layers.Add,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.Subtract,
)
def _merge(coupling, node, read):
    """Elementwise functions of several tensors or constants, broadcast."""
    operands = _operands(node, read)
    rank = max(len(shape) for shape, _ in operands)
    # Counted from the end, as broadcasting does.
    axes = {
        channels.axis - len(shape) for shape, channels in operands if channels
    }
    if len(axes) != 1:
        return coupling.pin(*read)
    (axis,) = axes
    sizes = [shape[axis] if len(shape) >= -axis else 1 for shape, _ in operands]
    # An operand of size 1 is broadcast to all channels of the others.
    wide = [
        channels
        for (_, channels), size in zip(operands, sizes)
        if size != 1 or set(sizes) == {1}
    ]
    if None in wide:
        return coupling.pin(*read)
    return Channels(rank + axis, _joined(coupling, wide).numbers)


def _operands(node, read):
    """Return `(shape, Channels)` of each argument of an operation."""
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


@merging_rule(layers.Concatenate)
def _concatenate(coupling, node, read):
    """Concatenate channels; or join them, if along another axis."""
    tensors = node.input_tensors
    axis = node.operation.axis % len(tensors[0].shape)
    axes = {channels.axis for channels in read if channels}
    if axes == {axis}:
        parts = map(coupling.along, [axis] * len(read), tensors, read)
        return Channels(axis, np.concatenate(list(parts)))
    if len(axes) != 1 or None in read:
        return coupling.pin(*read)
    return _joined(coupling, read)


def _joined(coupling, several):
    for channels in several[1:]:
        coupling.join(several[0].numbers, channels.numbers)
    return several[0]
