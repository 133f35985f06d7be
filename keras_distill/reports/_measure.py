"""Measuring models: the files that they take, their speed and their quality."""

import pathlib
import statistics
import time
from collections.abc import Iterable
from typing import Any
from typing import TypeAlias

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_distill._graphs._outputs import known_inputs
from keras_distill._graphs._outputs import known_outputs
from keras_distill._typing import Tensors
from keras_distill.compression import pack
from keras_distill.compression.litert._export_litert import write_litert
from keras_distill.compression.litert._interpreter import interpreter
from keras_distill.compression.litert._interpreter import run_file
from keras_distill.reports._arguments import inputs_of
from keras_distill.reports._labels_and_metrics import Target

# `{form: path}`, such as `{"litert_int8": path}`.
Files: TypeAlias = dict[str, pathlib.Path]

# A turn is long compared with the resolution of the clock, and short compared
# with disturbances by other processes.
_SECONDS_PER_TURN = 0.02
_WARM_UP = 5
_SUFFIXES = {"keras": "keras", "packed": "packed"}


def write_files(
    model: keras.Model,
    folder: pathlib.Path,
    litert: Iterable[str],
    samples: list[np.ndarray],
) -> tuple[Files, list[tuple[str, str]]]:
    """Write a model in every form: as a Keras file, packed, and for LiteRT.

    Args:
        model: a model with a layer graph.
        folder: the folder for the files.
        litert: precisions of LiteRT files, as in `export_litert`.
        samples: inputs that determine the ranges of the `"int8"` file.

    Returns:
        `{form: path}` of the written files, and a list of `(form, note)`: why a
        file could not be written, or a warning about a written file.
    """
    paths: Files = {}
    notes = []
    for form in ("keras", "packed", *(f"litert_{name}" for name in litert)):
        path = folder / f"{form}.{_SUFFIXES.get(form, 'tflite')}"
        try:
            notes += [
                (form, note) for note in write_form(model, path, form, samples)
            ]
            paths[form] = path
        except (RuntimeError, ValueError) as error:
            notes.append((form, str(error)))
    return paths, notes


def write_form(
    model: keras.Model,
    path: pathlib.Path,
    form: str,
    samples: list[np.ndarray],
) -> list[str]:
    """Write a model in one form, and return warnings.

    Args:
        model, samples: as in `write_files`.
        path: path of the file.
        form: `"keras"`, `"packed"`, or `"litert_"` and a precision.
    """
    if form == "keras":
        _without_optimizer(model).save(path)
        return []
    if form == "packed":
        pack(model, path)
        return []
    precision = form.removeprefix("litert_")
    return write_litert(
        model,
        path,
        precision=precision,
        representative_data=[samples] if precision == "int8" else None,
    )


def _without_optimizer(model):
    """Return a model that is not compiled, for saving."""
    if not model.compiled:
        return model
    # Only here: as a functional model, the config of a Sequential model is two
    # kilobytes longer.
    return keras.Model(
        known_inputs(model), known_outputs(model), name=model.name
    )


def measure_latency(
    files: dict[str, Files], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the time of one inference of each LiteRT file, on one thread.

    The models take turns, so that disturbances affect all of them alike. The
    time of a turn is the median of its inferences. The time of a model is the
    median of its turns, with the minimum and the maximum beside it.

    Args:
        files: `{name of a model: {form: path}}`.
        rounds: the number of turns of each file.

    Returns:
        `{name of a model: {key: milliseconds}}`.
    """
    runners = {
        (name, form): _with_inputs(interpreter(path.read_bytes()))
        for name, paths in files.items()
        for form, path in paths.items()
        if form.startswith("litert")
    }
    counts = {
        key: max(1, round(_SECONDS_PER_TURN / _turn(runner, _WARM_UP)))
        for key, runner in runners.items()
    }
    turns: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, runner in runners.items():
            turns[key].append(1000 * _turn(runner, counts[key]))
    found: dict[str, dict[str, float]] = {name: {} for name in files}
    for (name, form), times in turns.items():
        found[name] |= {
            f"{form}_ms": statistics.median(times),
            f"{form}_ms_low": min(times),
            f"{form}_ms_high": max(times),
        }
    return found


def _with_inputs(runner):
    """Return an interpreter that is ready to run on random inputs."""
    runner.allocate_tensors()
    generator = np.random.default_rng(0)
    for detail in runner.get_input_details():
        values = np.zeros(detail["shape"], detail["dtype"])
        if values.dtype.kind == "f":
            values[...] = generator.uniform(size=values.shape)
        runner.set_tensor(detail["index"], values)
    return runner


def _turn(runner, count):
    """Return the median seconds of `count` inferences."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        runner.invoke()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_quality(
    models: dict[str, keras.Model],
    files: dict[str, Files],
    x: Tensors,
    targets: list[Target],
) -> dict[str, dict[str, Any]]:
    """Return the metrics and the agreement of models and LiteRT files.

    Files in float32 and packed files are not measured: they have the outputs of
    the model, which was tested when they were written.

    Args:
        models: `{name: model}`. Agreement is measured with the first model.
        files: `{name: {form: path}}`.
        x: the inputs.
        targets: list of `Target`.

    Returns:
        `{name of a model: {key: number}}`.
    """
    outputs = {name: _outputs(name, model, x) for name, model in models.items()}
    reference = next(iter(outputs.values()))
    found = {}
    for name, model in models.items():
        found[name] = _scores(targets, outputs[name])
        found[name] |= _agreements(targets, outputs[name], reference)
        for form, path in files[name].items():
            if form.startswith("litert") and form != "litert_float32":
                scores = _scores(targets, _outputs_of_file(path, model, x))
                found[name] |= {f"{form}_{k}": v for k, v in scores.items()}
    return found


def _agreements(targets, outputs, reference):
    """Return the agreement of each target that has classes."""
    found = {}
    for target in targets:
        if target.classes is not None:
            choices = outputs[target.position].argmax(-1)
            same = choices == reference[target.position].argmax(-1)
            found[f"{target.prefix}agreement"] = float(np.mean(same))
    return found


def _scores(targets, outputs):
    """Return `{key: number}` of all metrics."""
    return {
        f"{target.prefix}{name}": _score(
            name, metric, target, outputs[target.position]
        )
        for target in targets
        for name, metric in target.metrics.items()
    }


def _score(name, metric, target, outputs):
    if metric is None:
        return float(np.mean(outputs.argmax(-1) == target.classes))
    if isinstance(metric, keras.Metric):
        metric.reset_state()
        metric.update_state(target.labels, outputs)
        value = ops.convert_to_numpy(metric.result())
        metric.reset_state()
    else:
        value = ops.convert_to_numpy(ops.mean(metric(target.labels, outputs)))
    if np.size(value) != 1:
        raise ValueError(
            f"The metric {name!r} must return one number. Received: an array "
            f"of shape {np.shape(value)}. Many metrics have an argument "
            "`average`."
        )
    return float(value)


def _outputs(name, model, x):
    """Return the outputs of a model, flattened, as arrays."""
    outputs = tree.flatten(model.predict(x, verbose=0))
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(
            f"The model {name!r} returns NaN or infinity on the data. Check "
            "its weights, and whether the inputs are scaled as in training."
        )
    return outputs


def _outputs_of_file(path, model, x):
    """Return the outputs of a LiteRT file, flattened, as arrays."""
    arrays = [
        array.astype(tensor.dtype)
        for tensor, array in zip(model.inputs, inputs_of(model, x))
    ]
    names = [tensor.name for tensor in model.inputs]
    return run_file(path.read_bytes(), names, arrays)
