"""What layers of several tensors do with channels. See `_channel_rules.py`."""

import keras
import numpy as np
from keras import layers

from keras_distill.compression._coupling import Channels


def merge(coupling, node, read):
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


def concatenate(coupling, node, read):
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


def attend(coupling, node, read):
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
