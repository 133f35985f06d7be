"""What the outputs of models are measured against: labels and metrics."""

import collections
import typing

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_distill._graphs._outputs import ending_activation
from keras_distill._graphs._outputs import known_outputs
from keras_distill._graphs._outputs import output_paths
from keras_distill._graphs._outputs import per_output
from keras_distill._graphs._outputs import select
from keras_distill.reports._arguments import check_inputs

_METRICS = (
    'Give `metrics`, such as `metrics={"mae": '
    "keras.metrics.MeanAbsoluteError()}`, and for several outputs a dict of "
    "such by the name of an output."
)
# `compile()` takes them for one thing or another by the shapes that it sees.
_BY_SHAPE = ("acc", "accuracy", "ce", "crossentropy")
# These compare value by value: other shapes would be broadcast.
_OF_VALUES = (
    "cosinesimilarity",
    "huber",
    "logcosh",
    "logcosherror",
    "meanabsoluteerror",
    "meanabsolutepercentageerror",
    "meansquarederror",
    "meansquaredlogarithmicerror",
    "r2score",
    "rootmeansquarederror",
)


class Target(typing.NamedTuple):
    """What one output is measured against.

    Attributes:
        index: the place of the output among those of the model, flattened.
        prefix: what the keys of its figures begin with.
        labels: an array, in a shape that metrics can compare with the output.
        classes: the labels as class indices, None if they are none.
        metrics: `{name: metric}`.
    """

    index: int
    prefix: str
    labels: np.ndarray
    classes: np.ndarray | None
    metrics: dict


def check_data(models, data, metrics):
    """Return `(x, targets)` if they fit all models."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            "`data` must be a tuple `(x, y)` of arrays. "
            f"Received: {type(data).__name__}"
        )
    x = tree.map_structure(_as_array, data[0])
    y = _labels(data[1], next(iter(models.values())))
    shapes = [array.shape for array in tree.flatten((x, y))]
    if len({shape[:1] for shape in shapes}) > 1 or not all(shapes[-1][:1]):
        raise ValueError(
            "`data` must be arrays, with as many labels as inputs, and some. "
            f"Received: inputs and labels of shape {shapes}"
        )
    for array in tree.flatten((x, y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("`data` has NaN or infinite values in it.")
    _check_same_outputs(models)
    for name, model in models.items():
        check_inputs(name, model, x)
    return x, _targets(next(iter(models.values())), y, metrics)


def _labels(y, model):
    """Return labels as an array, or a list or dict of them by output."""
    if isinstance(y, dict):
        return {name: _as_array(part) for name, part in y.items()}
    if isinstance(y, (list, tuple)) and len(model.outputs) > 1:
        return [_as_array(part) for part in y]
    return _as_array(y)


def _as_array(values):
    return np.asarray(ops.convert_to_numpy(values))


def _check_same_outputs(models):
    (first, expected), *others = [
        (name, _shapes(model)) for name, model in models.items()
    ]
    for name, shapes in others:
        if shapes != expected:
            raise ValueError(
                "All models must have the same outputs, in number, name and "
                f"shape, to be measured on the same data. Received: {first!r} "
                f"with {expected} and {name!r} with {shapes}"
            )


def _shapes(model):
    outputs = known_outputs(model)
    shapes = [tuple(tensor.shape[1:]) for tensor in tree.flatten(outputs)]
    return dict(zip(_names(model), shapes, strict=True))


def _names(model):
    """Return the names of outputs: keys of a dict, or names of layers."""
    paths = output_paths(known_outputs(model))
    if paths == [()]:
        return ["output"]
    names = getattr(model, "output_names", ())
    if all(isinstance(path[-1], str) for path in paths):
        names = [path[-1] for path in paths]
    if len(set(names)) != len(paths):
        names = [f"output_{index}" for index in range(len(paths))]
    return list(names)


def _targets(model, y, metrics):
    outputs = tree.flatten(known_outputs(model))
    if metrics is None:
        return [_of_a_classifier(outputs, y)]
    paths, names = output_paths(known_outputs(model)), _names(model)
    _check_names(metrics, names)
    targets = []
    for index, config in enumerate(
        per_output(metrics, paths, names, "metrics")
    ):
        if config is None:
            continue
        labels = select(y, paths[index], index, names)
        if labels is None or tree.is_nested(labels):
            raise ValueError(
                f"`data` has no labels for the output {names[index]!r}, which "
                "has metrics. Expected: a list of labels, or a dict by the "
                f"name of an output. Received: {type(y).__name__}"
            )
        prefix = "" if len(names) == 1 else f"{names[index]}_"
        targets.append(_target(index, prefix, labels, outputs[index], config))
    return targets


def _check_names(metrics, names):
    """Raise a ValueError if a dict of metrics fits none of the outputs."""
    if len(names) == 1:
        return
    if not isinstance(metrics, (dict, list, tuple)):
        raise ValueError(
            f"The models have {len(names)} outputs, {names}: `metrics` must be "
            "a dict by the name of an output, or a list with one entry for "
            f"each. Received: metrics={metrics!r}"
        )
    unknown = set(metrics) - set(names) if isinstance(metrics, dict) else ()
    if unknown or len(metrics) > len(names):
        raise ValueError(
            "`metrics` must be a dict by the name of an output, or a list with "
            f"one entry for each. The outputs are {names}. "
            f"Received: metrics={metrics!r}"
        )


def _of_a_classifier(outputs, y):
    shapes = [tuple(tensor.shape) for tensor in outputs]
    if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][-1] < 2:
        raise ValueError(
            "Accuracy and agreement are those of classifiers, of one output of "
            "shape (..., classes), with at least two classes. Received: "
            f"outputs of shape {shapes}. {_METRICS}"
        )
    if tree.is_nested(y):
        y = select(y, (), 0, None)
    classes = _classes(y, outputs[0])
    if classes is None:
        raise ValueError(
            f"Labels must be integers from 0 to {shapes[0][-1] - 1}, or one-"
            "hot (and integers if the model ends in a sigmoid, which may have "
            f"several labels at once). Received: labels of shape {y.shape} and "
            f"dtype {y.dtype}, from {y.min()} to {y.max()}. For values or "
            f"several labels: {_METRICS}"
        )
    return Target(0, "", y, classes, {"accuracy": None})


def _classes(labels, output):
    """Return labels as class indices, None if they are none."""
    rank, count = len(output.shape), output.shape[-1]
    if rank < 2 or count < 2:
        return None
    if labels.ndim == rank and labels.shape[-1] == count:
        one_hot = (labels.sum(-1) == 1) & (labels.max(-1) == 1)
        if not one_hot.all() or ending_activation(output)[1] == "sigmoid":
            return None
        return labels.argmax(-1)
    if labels.ndim == rank and labels.shape[-1] == 1:
        labels = labels[..., 0]
    whole = labels.astype("int64")
    valid = (whole == labels) & (whole >= 0) & (whole < count)
    return whole if labels.ndim == rank - 1 and valid.all() else None


def _target(index, prefix, labels, output, config):
    metrics = _named(config)
    shape = tuple(output.shape[1:])
    if labels.shape[1:] == shape[:-1] and shape[-1:] == (1,):
        labels = labels[..., np.newaxis]
    classes = _classes(labels, output)
    fits = labels.shape[1:] == shape
    for name, metric in metrics.items():
        if not fits and (classes is None or _kind(metric) in _OF_VALUES):
            raise ValueError(
                f"The labels don't fit the metric {name!r}. Expected: labels "
                f"of shape {(None, *shape)}, as the output has, or class "
                "indices for a metric of such. Received: labels of shape "
                f"{labels.shape} and dtype {labels.dtype}"
            )
    return Target(index, prefix, labels, classes, metrics)


def _kind(metric):
    """Return the name of a metric's class or function, in small letters."""
    name = getattr(metric, "__name__", type(metric).__name__)
    return name.replace("_", "").lower()


def _named(config):
    """Return `{name: metric}` of what was given for one output."""
    if isinstance(config, dict):
        return {str(name): _metric(metric) for name, metric in config.items()}
    if not isinstance(config, (list, tuple)):
        config = [config]
    named = [(_name_of(metric), _metric(metric)) for metric in config]
    counts = collections.Counter(name for name, _ in named)
    if len(counts) < len(named):
        raise ValueError(
            "Metrics in a list are called by their names, which must differ. "
            f"Received: {[name for name, _ in named]}. Give a dict by name."
        )
    return dict(named)


def _name_of(metric):
    if isinstance(metric, str):
        return metric
    return getattr(metric, "name", None) or getattr(
        metric, "__name__", type(metric).__name__
    )


def _metric(given):
    metric = given
    if isinstance(given, str):
        if given in _BY_SHAPE:
            raise ValueError(
                f"{given!r} stands for several metrics. Give the one that you "
                "mean, such as `keras.metrics.SparseCategoricalAccuracy()`. "
                f"Received: {given!r} in `metrics`"
            )
        metric = keras.metrics.get(given)
    if not callable(metric) or isinstance(metric, type):
        raise TypeError(
            "`metrics` must hold metrics of Keras, their names, or functions "
            f"of labels and outputs. Received: {given!r}"
        )
    return metric
