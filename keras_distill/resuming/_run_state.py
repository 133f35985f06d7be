"""What a run consists of beside its data: the model, and its callbacks."""

import inspect
import pathlib
from typing import Any

import keras

from keras_distill._keras_internals import global_seed_state
from keras_distill._keras_internals import random_states
from keras_distill._keras_internals import weights_file
from keras_distill.distiller import Distiller
from keras_distill.distiller import _saving
from keras_distill.resuming._plain_values import NotPlainError
from keras_distill.resuming._plain_values import encode

_WEIGHTS = "model.weights.h5"


def write_model(model: keras.Model, folder: pathlib.Path) -> dict[str, Any]:
    """Write weights and optimizer; return the other variables' values.

    Args:
        model: the model in `fit()`.
        folder: path of the folder.
    """
    (folder / _WEIGHTS).write_bytes(weights_file(model))
    return {
        "random": _values(_random_variables(model)),
        "metrics": {
            name: _values(metric.variables)
            for name, metric in _metrics(model).items()
        },
    }


def read_model(
    model: keras.Model,
    folder: pathlib.Path,
    values: dict[str, Any],
    calls: int,
) -> None:
    """Restore what `write_model` wrote, except for the metrics.

    Args:
        model: the model in `fit()`.
        folder: path of the folder.
        values: what `write_model` returned.
        calls: int, compiled calls of the current epoch that were made before.

    Raises:
        ValueError: if the folder belongs to another model or optimizer.
    """
    try:
        model.load_weights(folder / _WEIGHTS)
        _assign(_random_variables(model), values["random"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"The state {folder} must be of the same model and optimizer. "
            f"Received: model {model.name!r}, which does not fit: {error}. "
            "Resume with the same program, or use another directory."
        ) from error
    if isinstance(model, Distiller):
        model._logs.continue_at(calls)


def read_metrics(model: keras.Model, values: dict[str, Any]) -> None:
    """Restore the metrics of an epoch that has begun."""
    metrics = _metrics(model)
    for name, saved in values["metrics"].items():
        if saved:
            _assign(metrics[name].variables, saved)


def _metrics(model):
    """The metrics by name; on TensorFlow some may not be made yet."""
    named: dict[str, keras.metrics.Metric] = {}
    for metric in model.metrics:
        _add(named, metric.name, metric)
    return named


def _add(named, name, value):
    """Add to a dict, with a number behind the name."""
    same = sum(key.rpartition(" ")[0] == name for key in named)
    named[f"{name} {same}"] = value


def _random_variables(model):
    """The random generators, and what else no file of Keras holds."""
    variables = random_states(model)
    if isinstance(model, Distiller):
        variables += _saving.variables_beside_the_student(model)
    state = global_seed_state()
    return variables if state is None else [*variables, state]


def _values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def _assign(variables, values):
    if len(variables) != len(values):
        raise ValueError(f"{len(values)} values for {len(variables)} variables")
    for variable, value in zip(variables, values):
        variable.assign(value)


class CallbackStates:
    """The attributes of callbacks that change during training.

    Those are restored, and what the caller passed to a callback is not. Only
    plain values are kept: numbers, strings, arrays, and lists and dicts of
    them.

    Args:
        callbacks: list of the callbacks, after their `on_train_begin`.
    """

    def __init__(self, callbacks: list[keras.callbacks.Callback]) -> None:
        self._named: dict[str, keras.callbacks.Callback] = {}
        for callback in callbacks:
            if not isinstance(callback, keras.callbacks.ProgbarLogger):
                _add(self._named, type(callback).__name__, callback)
        self._initial = {n: _encoded(c) for n, c in self._named.items()}

    def values(self) -> dict[str, dict[str, Any]]:
        """Return the changed attributes by name, for each callback."""
        return {
            name: {
                key: vars(callback)[key]
                for key, value in _encoded(callback).items()
                if value != self._initial[name].get(key)
            }
            for name, callback in self._named.items()
        }

    def restore(self, values: dict[str, dict[str, Any]]) -> None:
        """Set the attributes that `values` returned."""
        for name, callback in self._named.items():
            vars(callback).update(values.get(name, {}))


def _encoded(callback):
    """Return plain attributes in a form that can be compared.

    Those named like an argument are the caller's. Keras changes some of them,
    again in each run: `min_delta` of a callback that monitors gets a sign.
    """
    arguments = inspect.signature(type(callback).__init__).parameters
    encoded = {}
    for key in set(vars(callback)).difference(arguments):
        value = vars(callback)[key]
        arrays: dict[str, Any] = {}
        try:
            form = encode(value, arrays)
        except NotPlainError:
            continue
        encoded[key] = form, {k: a.tobytes() for k, a in arrays.items()}
    return encoded
