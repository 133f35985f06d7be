"""What arrives in a step: inputs, labels, weights, and perhaps a record."""

import typing

import keras
import numpy as np
from keras import tree

# The parts of a recorded batch, which travel as its inputs.
INPUTS, DRAWN, ANSWERS = "recorded_inputs", "recorded_drawn", "answers"


class Record(typing.NamedTuple):
    """What was drawn for a batch, and the teacher's outputs, both by name."""

    drawn: dict
    answers: dict


def labels_or_none(x, y, arguments):
    """Return `y`, or labels of no values where there are weights and no `y`.

    Keras drops `sample_weight` beside `y=None`.

    Raises:
        ValueError: if there are weights per class and no labels.
    """
    if y is not None:
        return y
    if arguments.get("class_weight") is not None and _are_arrays(x):
        raise ValueError(
            "`class_weight` weighs samples by their labels, and the data has "
            "none. Pass `(x, y)`, or weigh the samples by `sample_weight`."
        )
    if arguments.get("sample_weight") is None:
        return None
    return np.zeros((len(tree.flatten(x)[0]), 0), "float32")


def _are_arrays(x):
    return all(hasattr(leaf, "shape") for leaf in tree.flatten(x))


def with_labels_or_none(data):
    """Return `(x, None, sample_weight)` with labels of no values."""
    if not (isinstance(data, (tuple, list)) and len(data) == 3):
        return data
    x, y, sample_weight = data
    y = labels_or_none(x, y, {"sample_weight": sample_weight})
    return x, y, sample_weight


def unpack(data):
    """Return `(x, y, sample_weight, record)` of a batch.

    `y` is `None` for labels of no values, and the record for a batch that was
    not recorded.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    leaves = [leaf for leaf in tree.flatten(y) if leaf is not None]
    if all(tuple(leaf.shape)[1:] == (0,) for leaf in leaves):
        y = None
    x, record = _split(x)
    return x, y, sample_weight, record


def _split(x):
    if not (isinstance(x, dict) and INPUTS in x):
        return x, None
    return x[INPUTS], Record(x[DRAWN], x[ANSWERS])
