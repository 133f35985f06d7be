"""The arguments of `fit()` and `evaluate()`, before Keras gets them."""

import inspect

import keras
import numpy as np
from keras import tree

from keras_distill import _backend
from keras_distill.distiller import _model_checks
from keras_distill.distiller._text import tokenized
from keras_distill.recording import _replay

_FIT = inspect.signature(keras.Model.fit)
_EVALUATE = inspect.signature(keras.Model.evaluate)


def fit_arguments(distiller, recording, x, y, args, kwargs):
    """Return the arguments of a call of `fit()` by name.

    Args:
        distiller: the `Distiller`.
        recording: its `RecordedTeacher`, whose rows join the data, or `None`.
        x, y, args, kwargs: as `fit()` got them.

    Raises:
        ValueError: if there is no data.
    """
    _model_checks.check_not_empty(x)
    arguments = _bound(_FIT, distiller, x, y, args, kwargs)
    arguments["validation_data"] = _validation_data(
        distiller.student, arguments.get("validation_data")
    )
    if recording is None:
        return arguments
    division = _backend.division_of_batches(distiller)
    return _replay.replayed(recording, arguments, distiller.augment, *division)


def evaluate_arguments(distiller, x, y, args, kwargs):
    """Return the arguments of a call of `evaluate()` by name.

    Args:
        distiller, x, y, args, kwargs: as for `fit_arguments`.

    Raises:
        ValueError: if there is no data.
    """
    _model_checks.check_not_empty(x)
    return _bound(_EVALUATE, distiller, x, y, args, kwargs)


def _bound(signature, distiller, x, y, args, kwargs):
    """Return the arguments by name, with tokens in place of text."""
    # `evaluate` also takes arguments that its signature does not name.
    arguments = dict(signature.bind(None, x, y, *args, **kwargs).arguments)
    del arguments["self"]
    arguments |= arguments.pop("kwargs", {})
    x, y, weights = tokenized(
        distiller.student, x, y, arguments.get("sample_weight")
    )
    arguments |= {"x": x, "sample_weight": weights}
    arguments["y"] = _labels_or_empty(x, y, arguments)
    return arguments


def _labels_or_empty(x, y, arguments):
    """Return `y`, or empty labels `(n, 0)` if there are weights without labels.

    Keras drops `sample_weight` if `y=None`. `unpack` turns empty labels into
    `None` again.

    Args:
        x, y: as for `fit()`.
        arguments: dict of the other arguments of `fit()` or `evaluate()`.

    Raises:
        ValueError: if there is a `class_weight` and no labels.
    """
    if y is not None:
        return y
    if arguments.get("class_weight") is not None and _are_arrays(x):
        raise ValueError(
            "`class_weight` weights samples by their labels. Received: "
            "`class_weight` and no labels. Pass `(x, y)`, or weight the "
            "samples with `sample_weight`."
        )
    if arguments.get("sample_weight") is None:
        return None
    return np.zeros((len(tree.flatten(x)[0]), 0), "float32")


def _validation_data(student, data):
    """Return validation data with tokens for text.

    Data `(x, None, sample_weight)` gets empty labels.
    """
    if data is None:
        return None
    given = tuple(data) if isinstance(data, (tuple, list)) else (data,)
    x, y, weights = tokenized(
        student, *keras.utils.unpack_x_y_sample_weight(given)
    )
    if hasattr(x, "element_spec"):
        return x
    if weights is not None:
        y = _labels_or_empty(x, y, {"sample_weight": weights})
        return x, y, weights
    return data if x is given[0] else (x, y)


def _are_arrays(x):
    return all(hasattr(leaf, "shape") for leaf in tree.flatten(x))
