"""Peak memory of a step, each in a process of its own.

The peak is the largest resident size of the process during steps that are
compiled already, less its size when the models had been built. So what both
sides hold anyway (libraries, weights) is not in the ratio, and neither is the
memory that a compiler takes for a while. Host memory, as Linux counts it.
"""

import ctypes
import gc
import json
import pathlib
import re
import statistics
import subprocess
import sys

from benchmarks import models
from benchmarks import setups

REPEATS = 3
STEPS = 4
PROCESS = pathlib.Path("/proc/self")
PAIRS = [
    ("cnn", "CNN (256, 512) to CNN (16, 32)"),
    ("resnet", "ResNet-56 to ResNet-20"),
]
SIDES = {
    "distiller": setups.distiller,
    "apart": setups.teacher_and_student,
}


def memory(smoke):
    rows = []
    for name, title in PAIRS[: 1 if smoke else None]:
        peaks = {side: [] for side in SIDES}
        for _ in range(1 if smoke else REPEATS):
            for side in SIDES:
                size = "smoke" if smoke else "full"
                peaks[side].append(in_a_process(__name__, side, name, size))
        ratios = [a / b for a, b in zip(*peaks.values())]
        medians = [statistics.median(values) for values in peaks.values()]
        rows.append(
            {
                "title": f"peak memory / (teacher + student alone), {title}",
                "goal": 1.05,
                "ratio": round(medians[0] / medians[1], 4),
                "low": round(min(ratios), 4),
                "high": round(max(ratios), 4),
                "mebibytes": [round(value) for value in medians],
                "samples": len(ratios),
            }
        )
    return rows


def in_a_process(module, *arguments):
    """Return what a module prints as its last line, read as JSON."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def peak(side, name, smoke):
    """Return the mebibytes that training adds in this process."""
    pair = models.pairs(smoke)[name]
    teacher, student = pair.teacher(), pair.student()
    before = resident("VmRSS")
    run = SIDES[side](
        pair._replace(teacher=lambda: teacher, student=lambda: student)
    )
    run(2)
    forget_peak()
    run(STEPS)
    return (resident("VmHWM") - before) / 2**20


def forget_peak():
    """Give freed memory back, and forget the peak, that of compiling too."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")


def resident(field):
    """Return the resident size now (`VmRSS`) or at its peak, in bytes."""
    status = (PROCESS / "status").read_text()
    (line,) = re.findall(rf"^{field}:\s+(\d+) kB", status, re.M)
    return int(line) * 1024


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], sys.argv[2], sys.argv[3] == "smoke")))
