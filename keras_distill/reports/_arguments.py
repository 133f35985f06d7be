"""The arguments of `compare`: checks, and conversion to one form."""

import importlib.util
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_distill._graphs._outputs import known_inputs
from keras_distill._graphs._walk import check_graph
from keras_distill._typing import Tensors
from keras_distill.compression._models import student_of
from keras_distill.compression.litert._export_litert import PRECISIONS
from keras_distill.compression.litert._export_litert import examples_of

_DEFAULT_PRECISIONS = ("float32", "float16", "int8")


def named_models(
    models: Mapping[str, keras.Model] | Sequence[keras.Model],
) -> dict[str, keras.Model]:
    """Return `{name: model}`, after checking that models can be measured."""
    if isinstance(models, (list, tuple)):
        names: list[Any] = [getattr(model, "name", None) for model in models]
        if len(set(names)) < len(names):
            raise ValueError(
                "The models in a list must have different names. Received: "
                f"{names}. Give a dict of models by name."
            )
        models = dict(zip(names, models))
    if not isinstance(models, dict):
        raise TypeError(
            "`models` must be a dict of models by name, or a list of models. "
            f"Received: {models!r}"
        )
    if not models:
        raise ValueError(
            f"`models` must have at least one model. Received: {models!r}"
        )
    models = {str(name): student_of(model) for name, model in models.items()}
    for name, model in models.items():
        _check_model(name, model)
    return models


def _check_model(name, model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`models` must be instances of `keras.Model`. "
            f"Received: {model!r} with the name {name!r}"
        )
    if not model.built:
        raise ValueError(
            f"The model {name!r} is not built, so it has no weights. Give it a "
            "`keras.Input`."
        )
    check_graph("compare", model)
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if any(None in shape[1:] for shape in shapes):
        raise ValueError(
            "The costs of a model depend on the size of its inputs, and the "
            f"input size of {name!r} is not fixed. Received: inputs of shape "
            f"{shapes}. Build the model with a `keras.Input` of known size."
        )


def check_precisions(
    litert: str | Iterable[str] | None,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the precisions of the LiteRT files and a list of notes.

    Raises:
        ImportError: if `litert` names precisions and LiteRT is not installed.
    """
    installed = importlib.util.find_spec("ai_edge_litert") is not None
    if litert is None:
        if installed:
            return _DEFAULT_PRECISIONS, []
        return (), [
            "No LiteRT files and times, because LiteRT is not installed. "
            "Install it with: pip install 'keras-distill[litert]'"
        ]
    litert = (litert,) if isinstance(litert, str) else tuple(litert)
    for precision in litert:
        if precision not in PRECISIONS:
            raise ValueError(
                f"`litert` must have values from {PRECISIONS}. "
                f"Received: litert={litert!r}"
            )
    if litert and not installed:
        raise ImportError(
            "`compare` requires LiteRT to write and time LiteRT files. Install "
            "it with: pip install 'keras-distill[litert]'. Or compare without "
            "these files: `compare(..., litert=())`."
        )
    return litert, []


def check_inputs(name: str, model: keras.Model, x: Tensors) -> None:
    """Raise a ValueError if the arrays do not fit the inputs of a model."""
    expected = {tensor.name: tensor.shape for tensor in model.inputs}
    try:
        fits = [tuple(array.shape[1:]) for array in inputs_of(model, x)] == [
            tuple(shape[1:]) for shape in expected.values()
        ]
    except KeyError:
        fits = False
    if not fits:
        shapes = tree.map_structure(lambda array: array.shape, x)
        raise ValueError(
            f"The data does not fit the model {name!r}. Expected: inputs of "
            f"shape {expected}. Received: {shapes}"
        )


def inputs_of(model: keras.Model, x: Tensors) -> list[np.ndarray]:
    """Return the arrays in `x`, in the order of the model's inputs."""
    if isinstance(x, dict) and not isinstance(known_inputs(model), dict):
        return [x[tensor.name] for tensor in model.inputs]
    return tree.flatten(x)


def samples_for_ranges(
    models: dict[str, keras.Model],
    data: tuple | None,
    representative_data: Any,
) -> dict[str, list[np.ndarray]]:
    """Return the inputs that determine the ranges of each model's int8 file."""
    if isinstance(representative_data, Iterator):
        raise TypeError(
            "`representative_data` is read again for each model, but an "
            "iterator can be read only once. Give an array, a dict of arrays, "
            "a list of batches or a `tf.data.Dataset`. "
            f"Received: {representative_data!r}"
        )
    if representative_data is None and data:
        return {name: inputs_of(m, data[0]) for name, m in models.items()}
    return {
        name: examples_of(model, representative_data)
        for name, model in models.items()
    }
