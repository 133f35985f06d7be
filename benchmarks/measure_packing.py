"""Memory that `pack` takes, beside the weights that it packs.

The peak of a process of its own while it packs, less its size before, as in
`measure_memory.py`. One kernel has all the weights, the case that takes most.
"""

import json
import pathlib
import statistics
import sys
import tempfile

import keras

from benchmarks.measure_memory import REPEATS
from benchmarks.measure_memory import forget_peak
from benchmarks.measure_memory import in_a_process
from benchmarks.measure_memory import resident
from keras_distill.compression import pack


def packing(smoke):
    size = 400 if smoke else 4000
    found = [
        in_a_process(__name__, str(size))
        for _ in range(1 if smoke else REPEATS)
    ]
    ratios = [peak / weights for peak, weights in found]
    middle = [statistics.median(sizes) / 2**20 for sizes in zip(*found)]
    return [
        {
            "title": "peak memory that `pack` adds / the weights, one Dense "
            f"layer of {4 * size * (size + 1) / 2**20:.0f} MiB",
            "goal": 3.0,
            "ratio": round(statistics.median(ratios), 4),
            "low": round(min(ratios), 4),
            "high": round(max(ratios), 4),
            "mebibytes": [round(value) for value in middle],
            "samples": len(ratios),
        }
    ]


def peak(size):
    """Return the bytes that packing adds in this process, and the weights'."""
    model = _dense(size)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.packed")
        pack(_dense(4), path)  # imports what it needs
        forget_peak()
        before = resident("VmRSS")
        pack(model, path)
    return resident("VmHWM") - before, 4 * model.count_params()


def _dense(size):
    return keras.Sequential([keras.Input((size,)), keras.layers.Dense(size)])


if __name__ == "__main__":
    print(json.dumps(peak(int(sys.argv[1]))))
