"""What layers without weights do with channels. See `_channel_rules.py`."""

import numpy as np

from keras_distill.compression._coupling import Channels
from keras_distill.compression._elementwise import is_elementwise
from keras_distill.compression._weight_rules import channel_axis


def pass_on(coupling, layer, tensor, channels):
    """The same function at every place."""
    return channels


def activate(coupling, layer, tensor, channels):
    """Activation, which may be one over all channels, such as softmax."""
    if is_elementwise(layer.activation):
        return channels
    return coupling.pin(channels)


def rescale(coupling, layer, tensor, channels):
    """One factor for all, or one for each channel and then it stays."""
    if np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return channels
    return coupling.pin(channels)


def move_in_space(coupling, layer, tensor, channels):
    """Pooling, padding and the like: other places, the same channels."""
    if channels and channels.axis == channel_axis(layer, tensor):
        return channels
    return coupling.pin(channels)


def pool_globally(coupling, layer, tensor, channels):
    """No places are left."""
    channels = move_in_space(coupling, layer, tensor, channels)
    if channels and not layer.keepdims:
        return Channels(1, channels.numbers)
    return channels


def repeat(coupling, layer, tensor, channels):
    """RepeatVector: a new axis before the channels."""
    return channels and Channels(2, channels.numbers)


def flatten(coupling, layer, tensor, channels):
    """Each channel comes to stand once for every place."""

    def arrange(places):
        if layer.data_format == "channels_first":
            places = np.moveaxis(places, 0, -1)
        return places.ravel()

    return _arrange(coupling, tensor, channels, arrange)


def permute(coupling, layer, tensor, channels):
    """Axes are counted from 1, after the batch."""
    axes = [axis - 1 for axis in layer.dims]
    return _arrange(coupling, tensor, channels, lambda p: p.transpose(axes))


def reshape(coupling, layer, tensor, channels):
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
