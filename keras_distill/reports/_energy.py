"""An estimate of the energy of one inference, from counts and a table.

    energy = MACs x (multiply + add) + DRAM x words of weights
           + SRAM x words of activations

A word has 32 bits. Each weight is read once from DRAM; what a layer reads and
writes goes through SRAM once, with nothing for layers that work in place. The
energies are those of a 45 nm chip: Horowitz 2014, "Computing's energy problem",
ISSCC, https://doi.org/10.1109/ISSCC.2014.6757323; those of memory as in Han et
al. 2016, "EIE", https://arxiv.org/abs/1602.01528. No device was measured:
this compares models, and is off by what else a device does.
"""

import math

from keras_distill.reports._memory import works_in_place

# In picojoules.
_FLOAT32 = {"multiply": 3.7, "add": 0.9}
# Products of 8 bits, summed in 32.
_INT8 = {"multiply": 0.2, "add": 0.1}
_SRAM, _DRAM = 5.0, 640.0


def energies(parameters, macs, packed_bytes, calls):
    """Return estimates in microjoules, by the kind of hardware.

    `"float32"` and `"int8"` compute with all weights. `"packed"` is a chip such
    as EIE, which reads the packed file and skips the zeros, in float32.
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
    if works_in_place(call):
        return 0
    return sum(math.prod(t.shape) for t in (*call.inputs, *call.outputs))
