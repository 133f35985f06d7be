"""The costs of one inference, computed from the graph: memory and energy.

The calls of one inference are listed in `_graphs/_inference.py`, and their MACs
are counted in `_graphs/_macs.py`.
"""

import math
from collections.abc import Iterable
from typing import Any

from keras import layers

from keras_distill._graphs._elementwise import is_elementwise
from keras_distill._graphs._elementwise import is_elementwise_layer
from keras_distill._graphs._elementwise import is_elementwise_operation
from keras_distill._graphs._inference import Call
from keras_distill._graphs._inference import Inference
from keras_distill._graphs._macs import Macs

_IN_PLACE = (
    layers.BatchNormalization,
    layers.Flatten,
    layers.Normalization,
    layers.PReLU,
    layers.Rescaling,
    layers.Reshape,
)

# Energies of operations in picojoules.
_FLOAT32 = {"multiply": 3.7, "add": 0.9}
# Products of 8 bits, summed in 32 bits.
_INT8 = {"multiply": 0.2, "add": 0.1}
_SRAM, _DRAM = 5.0, 640.0


def peak_activation_bytes(inference: Inference) -> int:
    """Return the maximum memory of all activations that live at once.

        peak = max over calls of the sum of 4 bytes x size of each live tensor

    A tensor lives from the call that makes it to the last call that reads it,
    both included. A model input lives from the start, an output to the end.
    Calls run in the order of the graph, depth first, with batch size 1 in
    float32. An elementwise call (normalization, activation, dropout) on a
    tensor that no later call reads, and a call that moves no value (Flatten,
    Reshape), overwrite their input: runtimes fuse them into the layer before.
    Weights and the scratch memory of layers are not included.
    """
    last_read = _last_reads(inference)
    live = {id(tensor): _bytes(tensor) for tensor in inference.inputs}
    peak = sum(live.values())
    for step, call in enumerate(inference.calls):
        last = [t for t in call.inputs if last_read[id(t)] == step]
        if last and _works_in_place(call):
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


def _works_in_place(call):
    """Return whether a call can overwrite its only input."""
    if len(call.inputs) != 1 or _bytes(call.inputs[0]) != sum(
        map(_bytes, call.outputs)
    ):
        return False
    operation = call.operation
    if isinstance(operation, layers.Activation):
        return is_elementwise(operation.activation)
    return (
        isinstance(operation, _IN_PLACE)
        or is_elementwise_layer(operation)
        or is_elementwise_operation(operation)
    )


def _bytes(tensor):
    return 4 * math.prod(tensor.shape)


def energies(
    parameters: int,
    macs: Macs,
    packed_bytes: int | None,
    calls: Iterable[Call],
) -> dict[str, Any]:
    """Return estimates of the energy of one inference, in microjoules.

        energy = MACs x (multiply + add) + DRAM x words of weights
               + SRAM x words of activations

    A word has 32 bits. Each weight is read once from DRAM. The inputs and
    outputs of each layer pass through SRAM once, except for layers that work in
    place. The energies are those of a 45 nm chip (Horowitz 2014, "Computing's
    energy problem", ISSCC, https://doi.org/10.1109/ISSCC.2014.6757323), those
    of memory as in Han et al. 2016, "EIE", https://arxiv.org/abs/1602.01528. No
    device was measured: the estimate compares models, and leaves out everything
    else that a device does.

    Args:
        parameters: the number of weights.
        macs: the MACs of the model.
        packed_bytes: the size of the packed file, or None.
        calls: the calls of one inference.

    Returns:
        A dict with `"float32"` and `"int8"`, for chips that compute with all
        weights, and `"packed"`, for a chip such as EIE that reads the packed
        file and skips zeros, in float32. An unknown energy is None.
    """
    words = sum(_values_moved(call) for call in calls)
    return {
        "float32": _energy(macs.all, _FLOAT32, 4 * parameters, 4 * words),
        "int8": _energy(macs.all, _INT8, parameters, words),
        "packed": _energy(macs.nonzero, _FLOAT32, packed_bytes, 4 * words),
    }


def _energy(macs, operations, weight_bytes, activation_bytes):
    if macs is None or weight_bytes is None:
        return None
    picojoules = (
        macs * sum(operations.values())
        + _DRAM * weight_bytes / 4
        + _SRAM * activation_bytes / 4
    )
    return picojoules / 1e6


def _values_moved(call):
    if _works_in_place(call):
        return 0
    return sum(math.prod(t.shape) for t in (*call.inputs, *call.outputs))
