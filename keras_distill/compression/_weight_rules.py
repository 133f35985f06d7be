"""What layers with weights do with channels. See `_channel_rules.py`."""

import numpy as np
from keras import layers

from keras_distill.compression._coupling import Channels
from keras_distill.compression._elementwise import is_elementwise

TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)


def channel_axis(layer, tensor):
    """Return the axis on which a layer looks for channels."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    return len(tensor.shape) - 1


def project(coupling, layer, tensor, channels):
    """Dense and convolutions: each channel is a sum over all that go in."""
    axis = channel_axis(layer, tensor)
    # From the end: kernels of convolutions have their windows first.
    input_axis, output_axis = -2, -1
    if type(layer) in TRANSPOSED:
        input_axis, output_axis = -1, -2
    read = coupling.along(axis, tensor, channels)
    coupling.cut(layer, "kernel", input_axis, read)
    setting = "units" if type(layer) is layers.Dense else "filters"
    count = getattr(layer, setting)
    made = coupling.make(layer, "kernel", output_axis, count, setting)
    coupling.cut(layer, "bias", 0, made)
    return _activated(coupling, layer, axis, made)


def project_depthwise(coupling, layer, tensor, channels):
    """Each channel comes from one that goes in."""
    axis = channel_axis(layer, tensor)
    read = coupling.along(axis, tensor, channels)
    returned = np.repeat(read, layer.depth_multiplier)
    coupling.cut(layer, "kernel", -2, read)
    coupling.cut(layer, "bias", 0, returned)
    return _activated(coupling, layer, axis, returned)


def project_separable(coupling, layer, tensor, channels):
    """A depthwise convolution and one of width 1 in the same layer."""
    axis = channel_axis(layer, tensor)
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


def embed(coupling, layer, tensor, channels):
    """Each integer gets a row, whose entries are the channels."""
    coupling.pin(channels)
    made = coupling.make(layer, "embeddings", 1, layer.output_dim, "output_dim")
    return Channels(len(tensor.shape), made)


def normalize(coupling, layer, tensor, channels):
    """BatchNormalization: numbers of its own for each channel."""
    axis = layer.axis % len(tensor.shape)
    numbers = coupling.along(axis, tensor, channels)
    for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
        coupling.cut(layer, weight, 0, numbers)
    return Channels(axis, numbers)


def bend(coupling, layer, tensor, channels):
    """PReLU: a slope of its own at every place, save along shared axes."""
    channels = coupling.same(layer, channels)
    if channels and channels.axis not in (layer.shared_axes or ()):
        coupling.cut(layer, "alpha", channels.axis - 1, channels.numbers)
    return channels
