"""The figures of models whose files are written."""

import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._graphs._inference import infer
from keras_distill._graphs._macs import count_macs
from keras_distill.compression.litert._arena import arena_bytes
from keras_distill.compression.litert._arena import micro_is_installed
from keras_distill.reports._comparison import Comparison
from keras_distill.reports._costs import energies
from keras_distill.reports._costs import peak_activation_bytes
from keras_distill.reports._measure import Files
from keras_distill.reports._measure import measure_latency
from keras_distill.reports._measure import measure_quality


def compare_files(
    models: dict[str, keras.Model],
    files: dict[str, Files],
    data: tuple[Any, list] | None,
    rounds: int,
    notes: list[str],
) -> Comparison:
    """Return the figures of models and of their files, as `compare` does.

    Args:
        models: `{name: model}`.
        files: `{name: {form: path}}`, as `write_files` writes them.
        data: `(x, targets)`, as `check_data` returns it, or None.
        rounds: the number of turns for the time of each file.
        notes: what is already known, to stand below the table.
    """
    figures = {
        name: _costs(name, model, files[name], notes)
        for name, model in models.items()
    }
    for name, times in measure_latency(files, rounds).items():
        figures[name] |= times
    if data:
        for name, quality in measure_quality(models, files, *data).items():
            figures[name] = _merged(figures[name], quality)
    return Comparison(figures, notes)


def _arena_bytes(name, file, notes):
    if file is None or not micro_is_installed():
        return {}
    try:
        arena = arena_bytes(file.read_bytes())
    except RuntimeError as error:
        notes.append(f"arena of {name}: {error}")
        arena = None
    return {"litert_int8_arena_bytes": arena}


def _merged(costs, quality):
    clash = sorted(costs.keys() & quality.keys())
    if clash:
        raise ValueError(
            "The names of `metrics` must differ from the keys of the other "
            f"figures. Received: {clash}"
        )
    return costs | quality


def _costs(name, model, files, notes):
    """Return the figures that do not require running the model."""
    inference = infer(model)
    macs = count_macs(inference.calls)
    if macs.uncounted:
        some = ", ".join(macs.uncounted[:3])
        more = f" and {n - 3} more" if (n := len(macs.uncounted)) > 3 else ""
        notes.append(f"macs of {name}: unknown for {some}{more}")
    sizes = {form: path.stat().st_size for form, path in files.items()}
    zipped = {
        f"{form}_zipped_bytes": len(zlib.compress(path.read_bytes(), 9))
        for form, path in files.items()
        if form.startswith("litert")
    }
    arena = _arena_bytes(name, files.get("litert_int8"), notes)
    weights = [ops.convert_to_numpy(weight) for weight in model.weights]
    parameters = sum(weight.size for weight in weights)
    energy = energies(parameters, macs, sizes.get("packed"), inference.calls)
    return {
        "parameters": parameters,
        "nonzero_parameters": sum(int(np.count_nonzero(w)) for w in weights),
        "macs": macs.all,
        "peak_activation_bytes": peak_activation_bytes(inference),
        **{f"{form}_bytes": size for form, size in sizes.items()},
        **zipped,
        **arena,
        **{f"energy_{chip}_uj": value for chip, value in energy.items()},
    }
