"""The labels and metrics that the outputs of models are measured with."""

import collections
from typing import Any
from typing import NamedTuple

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
    "keras.metrics.MeanAbsoluteError()}`. For several outputs, give a dict of "
    "metrics by output name."
)
# `compile()` replaces these names by a metric that depends on the shapes.
_BY_SHAPE = ("acc", "accuracy", "ce", "crossentropy")
# These compare labels and outputs value by value. If the shapes differ, they
# would be broadcast.
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


class Target(NamedTuple):
    """The labels and metrics of one output.

    Attributes:
        position: the index of the output among the flattened model outputs.
        prefix: the beginning of the keys of its figures.
        labels: an array, in a shape that metrics can compare with the output.
        classes: the labels as class indices, None if they are not classes.
        metrics: `{name: metric}`. None instead of a metric is accuracy.
    """

    position: int
    prefix: str
    labels: np.ndarray
    classes: np.ndarray | None
    metrics: dict


def check_data(
    models: dict[str, keras.Model], data: Any, metrics: Any
) -> tuple[Any, list[Target]]:
    """Return `(x, targets)`, after checking that they fit all models.

    The arguments are those of `compare`.
    """
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
            "`data` must be arrays with as many labels as inputs, and at least "
            f"one sample. Received: inputs and labels of shape {shapes}"
        )
    for array in tree.flatten((x, y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                "`data` must have finite values. Received: NaN or infinity in "
                f"an array of shape {array.shape}"
            )
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
                "All models must have the same outputs (number, names and "
                "shapes), because they are measured on the same data. "
                f"Received: {first!r} with {expected} and {name!r} with "
                f"{shapes}"
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
        return [_classifier_target(outputs, y)]
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
                "has metrics. Expected: a list of labels, or a dict of labels "
                f"by output name. Received: {type(y).__name__}"
            )
        prefix = "" if len(names) == 1 else f"{names[index]}_"
        targets.append(_target(index, prefix, labels, outputs[index], config))
    return targets


def _check_names(metrics, names):
    """Raise a ValueError if metrics do not match the outputs."""
    if len(names) == 1:
        return
    if not isinstance(metrics, (dict, list, tuple)):
        raise ValueError(
            f"The models have {len(names)} outputs, {names}. `metrics` must be "
            "a dict by output name, or a list with one entry for each output. "
            f"Received: metrics={metrics!r}"
        )
    unknown = set(metrics) - set(names) if isinstance(metrics, dict) else ()
    if unknown or len(metrics) > len(names):
        raise ValueError(
            "`metrics` must be a dict by output name, or a list with one entry "
            f"for each output. The outputs are {names}. "
            f"Received: metrics={metrics!r}"
        )


def _classifier_target(outputs, y):
    shapes = [tuple(tensor.shape) for tensor in outputs]
    if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][-1] < 2:
        raise ValueError(
            "Accuracy and agreement require a classifier with one output of "
            "shape (..., classes) and at least two classes. Received: outputs "
            f"of shape {shapes}. {_METRICS}"
        )
    if tree.is_nested(y):
        y = select(y, (), 0, None)
    classes = _classes(y, outputs[0])
    if classes is None:
        raise ValueError(
            f"Labels must be integers from 0 to {shapes[0][-1] - 1}, or "
            "one-hot. If the model ends in a sigmoid, they must be integers, "
            "because it may predict several labels at once. Received: labels "
            f"of shape {y.shape} and dtype {y.dtype}, from {y.min()} to "
            f"{y.max()}. For regression or multi-label models: {_METRICS}"
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
        if not fits and (classes is None or _class_name(metric) in _OF_VALUES):
            raise ValueError(
                f"The labels do not fit the metric {name!r}. Expected: labels "
                f"of the output's shape {(None, *shape)}, or class indices for "
                "a metric that takes class indices. Received: labels of shape "
                f"{labels.shape} and dtype {labels.dtype}"
            )
    return Target(index, prefix, labels, classes, metrics)


def _class_name(metric):
    """Return the name of a metric's class or function, in lower case."""
    name = getattr(metric, "__name__", type(metric).__name__)
    return name.replace("_", "").lower()


def _named(config):
    """Return `{name: metric}` for the metrics of one output."""
    if isinstance(config, dict):
        return {str(name): _metric(metric) for name, metric in config.items()}
    if not isinstance(config, (list, tuple)):
        config = [config]
    named = [(_name_of(metric), _metric(metric)) for metric in config]
    counts = collections.Counter(name for name, _ in named)
    if len(counts) < len(named):
        raise ValueError(
            "The metrics in a list must have different names. Received: "
            f"{[name for name, _ in named]}. Give a dict of metrics by name."
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
                f"The name {given!r} stands for several metrics. Give one of "
                "them, such as `keras.metrics.SparseCategoricalAccuracy()`. "
                f"Received: {given!r} in `metrics`"
            )
        metric = keras.metrics.get(given)
    if not callable(metric) or isinstance(metric, type):
        raise TypeError(
            "`metrics` must be Keras metrics, their names, or functions of "
            f"labels and outputs. Received: {given!r}"
        )
    return metric
