"""The memory that the activations of one inference take at most.

    peak = max over calls of the sum of 4 bytes x size of each live tensor

A tensor lives from the call that makes it to the last one that reads it, both
included; an input of the model from the start, an output to the end. Calls
follow each other in the order of the graph, depth first, for a batch of one in
float32. A call that works place by place on a tensor that nobody reads after it
(normalization, activation, dropout) or moves no value (Flatten, Reshape) writes
over it, since runtimes fold it into the layer before. Weights and the scratch
space of a layer are not in it.
"""

import math

from keras import layers

from keras_distill._graphs._elementwise import LAYERS
from keras_distill._graphs._elementwise import is_elementwise
from keras_distill._graphs._elementwise import is_elementwise_operation

_IN_PLACE = (
    *LAYERS,
    layers.BatchNormalization,
    layers.Flatten,
    layers.Normalization,
    layers.PReLU,
    layers.Rescaling,
    layers.Reshape,
)


def peak_activation_bytes(inference):
    """Return the largest sum of what lives at once, in bytes."""
    last_read = _last_reads(inference)
    live = {id(tensor): _bytes(tensor) for tensor in inference.inputs}
    peak = sum(live.values())
    for step, call in enumerate(inference.calls):
        last = [t for t in call.inputs if last_read[id(t)] == step]
        if last and works_in_place(call):
            del live[id(last[0])]
        live |= {id(tensor): _bytes(tensor) for tensor in call.outputs}
        peak = max(peak, sum(live.values()))
        for tensor in (*last, *call.outputs):
            if last_read.get(id(tensor), step) == step:
                live.pop(id(tensor), None)
    return peak


def _last_reads(inference):
    """Return `{id: step}` of the last call that reads a tensor."""
    last = {
        id(tensor): step
        for step, call in enumerate(inference.calls)
        for tensor in call.inputs
    }
    return last | {id(tensor): math.inf for tensor in inference.outputs}


def works_in_place(call):
    """Return whether a call can write over the one tensor that it reads."""
    if len(call.inputs) != 1 or _bytes(call.inputs[0]) != sum(
        map(_bytes, call.outputs)
    ):
        return False
    operation = call.operation
    if isinstance(operation, layers.Activation):
        return is_elementwise(operation.activation)
    return isinstance(operation, _IN_PLACE) or is_elementwise_operation(
        operation
    )


def _bytes(tensor):
    return 4 * math.prod(tensor.shape)
