"""What `compare` is given: checked, and in the form that the rest reads."""

import collections.abc
import importlib.util

import keras
from keras import tree

from keras_distill._graphs._outputs import known_inputs
from keras_distill._graphs._walk import check_graph
from keras_distill.compression.litert._export_litert import PRECISIONS
from keras_distill.compression.litert._export_litert import examples_of
from keras_distill.compression.weights._kernels import student_of

_DEFAULT_PRECISIONS = ("float32", "float16", "int8")


def named_models(models):
    """Return `{name: model}`, all of them such that they can be measured."""
    if isinstance(models, (list, tuple)):
        names = [getattr(model, "name", None) for model in models]
        if len(set(names)) < len(names):
            raise ValueError(
                "Models in a list are called by their names, which must "
                f"differ. Received: {names}. Give a dict of models by name."
            )
        models = dict(zip(names, models))
    if not isinstance(models, dict):
        raise TypeError(
            "`models` must be a dict of models by name, or a list of models. "
            f"Received: {models!r}"
        )
    if not models:
        raise ValueError(f"`models` has no models. Received: {models!r}")
    models = {str(name): student_of(model) for name, model in models.items()}
    for name, model in models.items():
        _check_model(name, model)
    return models


def _check_model(name, model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`models` must hold `keras.Model`s. "
            f"Received: {model!r} under the name {name!r}"
        )
    if not model.built:
        raise ValueError(
            f"The model {name!r} is not built, so it has no weights to count. "
            "Give it a `keras.Input`."
        )
    check_graph("compare", model)
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if any(None in shape[1:] for shape in shapes):
        raise ValueError(
            "What a model costs depends on the size of its input, and that of "
            f"{name!r} is not fixed. Received: inputs of shape {shapes}. Build "
            "it with a `keras.Input` of known size."
        )


def check_precisions(litert):
    """Return the precisions of LiteRT files, as a tuple, and a list of notes.

    Raises:
        ImportError: if some are asked for and LiteRT is not installed.
    """
    installed = importlib.util.find_spec("ai_edge_litert") is not None
    if litert is None:
        if installed:
            return _DEFAULT_PRECISIONS, []
        return (), [
            "Without LiteRT files and times, because LiteRT is not installed: "
            "pip install 'keras-distill[litert]'"
        ]
    litert = (litert,) if isinstance(litert, str) else tuple(litert)
    for precision in litert:
        if precision not in PRECISIONS:
            raise ValueError(
                f"`litert` must be some of {PRECISIONS}. "
                f"Received: litert={litert!r}"
            )
    if litert and not installed:
        raise ImportError(
            "`compare` writes LiteRT files and times them, and needs LiteRT "
            "for it: pip install 'keras-distill[litert]'. Without them: "
            "`compare(..., litert=())`."
        )
    return litert, []


def check_inputs(name, model, x):
    """Raise a ValueError if arrays are no inputs of a model."""
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


def inputs_of(model, x):
    """Return the arrays in `x`, in the order of the model's inputs."""
    if isinstance(x, dict) and not isinstance(known_inputs(model), dict):
        return [x[tensor.name] for tensor in model.inputs]
    return tree.flatten(x)


def samples_for_ranges(models, data, representative_data):
    """Return for each model the inputs that int8 files get ranges from."""
    if isinstance(representative_data, collections.abc.Iterator):
        raise TypeError(
            "`representative_data` is read once for each model, and an "
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
