"""A second process that converts models, and may crash.

It reads the path of a folder from each line of its input. `_converter.py` has
filled the folder, and reads the results when this process writes a line.
"""

import gc
import importlib
import json
import os
import pathlib
import sys

import keras
import numpy as np

from keras_distill.compression.litert import _converter_steps as steps
from keras_distill.compression.litert._interpreter import run_file


class NotFoundError(Exception):
    """Raised if the model cannot be built in this process."""


def main(folder: pathlib.Path) -> None:
    """Convert the model in a folder, and run the file."""
    task = json.loads((folder / "task.json").read_text())
    names, saved = task["names"], folder / "saved_model"
    examples = _arrays(folder / "examples.npz") or None
    if not saved.exists():
        model = _load(folder / "model.keras", task["objects"])
        steps.check_loops(steps.trace(model, names, saved), examples)
    content = steps.convert(
        saved, names, task["precision"], examples, task["io_dtype"]
    )
    outputs = run_file(content, names, _arrays(folder / "test_inputs.npz"))
    (folder / "model.tflite").write_bytes(content)
    np.savez(folder / "outputs.npz", *outputs)


def _arrays(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays]


def _load(path, objects):
    found = {name: _imported(module, name) for module, name in objects}
    try:
        return keras.models.load_model(
            path,
            {name: value for name, value in found.items() if value},
            compile=False,
            safe_mode=False,  # the calling process has written the file
        )
    except Exception as error:
        raise NotFoundError(str(error)) from error


def _imported(module, name):
    """Return an object, or None if it cannot be found in this process."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


if __name__ == "__main__":
    # Libraries may print. Their lines must not look like ours.
    done = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # The converter collects garbage for each model, which would look through
    # all that was imported.
    gc.freeze()
    for line in sys.stdin:
        folder = pathlib.Path(line.rstrip("\n"))
        try:
            main(folder)
        except Exception as error:
            found = {"kind": type(error).__name__, "message": str(error)}
            (folder / "error.json").write_text(json.dumps(found))
        keras.utils.clear_session(free_memory=False)
        print("done", file=done, flush=True)
