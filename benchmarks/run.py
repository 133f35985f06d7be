"""Measures on one backend, and keeps the results beside those of the others.

    KERAS_BACKEND=jax python -m benchmarks.run

`--only overhead,views` measures these alone and keeps the other results;
`--resume` measures what the file does not hold yet. `make bench` measures all
backends one after the other and writes the table of docs/performance.md.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time

import keras

from benchmarks import measure_compression
from benchmarks import measure_memory
from benchmarks import measure_packing
from benchmarks import measure_replay
from benchmarks import measure_scaling
from benchmarks import measure_steps
from benchmarks import measure_teachers
from benchmarks import measure_tokens
from benchmarks import measure_views

MEASUREMENTS = {
    "overhead": measure_steps.overhead,
    "by_hand": measure_steps.by_hand,
    "keras_logits": measure_steps.keras_logits,
    "keras_features": measure_steps.keras_features,
    "memory": measure_memory.memory,
    "replay": measure_replay.replay,
    "views": measure_views.views,
    "cheaper_teachers": measure_teachers.cheaper_teachers,
    "compression": measure_compression.compression,
    "packing": measure_packing.packing,
    "batch_size": measure_steps.batch_size,
    "teachers": measure_steps.teachers,
    "hints": measure_steps.hints,
    "classes": measure_steps.classes,
    "tokens": measure_tokens.tokens,
    "token_recording": measure_tokens.token_recording,
    "scaling": measure_scaling.scaling,
    "teacher_variables": measure_scaling.teacher_variables,
}
RESULTS = pathlib.Path(__file__).parent / "results.json"
PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy")


def machine():
    """Return what the numbers depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in PACKAGES
        },
    }


def _processor():
    path = pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def measure(name, smoke):
    """Measure one entry of the table, and note when and how."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    rows = MEASUREMENTS[name](smoke)
    return {
        "date": datetime.date.today().isoformat(),
        "command": f"KERAS_BACKEND={keras.backend.backend()} "
        f"python -m benchmarks.run --only {name}",
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "rows": rows,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny, one round")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(MEASUREMENTS)
    unknown = sorted(set(names) - set(MEASUREMENTS))
    if unknown:
        sys.exit(
            f"No measurement is called {', '.join(unknown)}. "
            f"There are: {', '.join(MEASUREMENTS)}."
        )

    backend = keras.backend.backend()
    for name in names:
        results = {}
        if options.out.exists():
            results = json.loads(options.out.read_text())
        measured = results.setdefault(backend, {})
        if options.resume and name in measured:
            continue
        measured[name] = measure(name, options.smoke)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        for row in measured[name]["rows"]:
            print(
                f"{backend:11}{row['ratio']:8.3f}  "
                f"({row['low']:.3f} to {row['high']:.3f})  {row['title']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
