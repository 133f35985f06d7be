"""The arguments of `fit()` and `evaluate()`, before Keras gets them."""

import inspect

import keras
import numpy as np
from keras import tree

from keras_distill import _backend
from keras_distill.distiller import _model_checks
from keras_distill.recording import _replay

_FIT = inspect.signature(keras.Model.fit)


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
    arguments = dict(_FIT.bind(None, x, y, *args, **kwargs).arguments)
    del arguments["self"]
    arguments["y"] = labels_or_empty(x, y, arguments)
    arguments["validation_data"] = _with_labels_or_empty(
        arguments.get("validation_data")
    )
    if recording is None:
        return arguments
    division = _backend.division_of_batches(distiller)
    return _replay.replayed(recording, arguments, distiller.augment, *division)


def labels_or_empty(x, y, arguments):
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


def _with_labels_or_empty(data):
    """Return validation data `(x, None, sample_weight)` with empty labels."""
    if not (isinstance(data, (tuple, list)) and len(data) == 3):
        return data
    x, y, sample_weight = data
    y = labels_or_empty(x, y, {"sample_weight": sample_weight})
    return x, y, sample_weight


def _are_arrays(x):
    return all(hasattr(leaf, "shape") for leaf in tree.flatten(x))
