"""Objective: everything that `compile(loss=...)` asked for, as one Keras loss.

Keras matches losses with outputs by comparing the structures of `y_true` and
`y_pred`, and the targets of distillation have one of their own: labels and the
teacher's outputs. So the Distiller resolves its losses here and gives Keras a
single loss for a single opaque target (`Leaf`). Everything else stays Keras's:
regularisers, loss scaling, distribution strategies, the `loss` log.
"""

import typing

import keras
from keras import ops
from keras import tree

from keras_distill import _backend
from keras_distill import _outputs
from keras_distill.losses.distillation_loss import DistillationLoss


class Leaf:
    """Hides a structure from Keras, which takes unknown objects as leaves."""

    def __init__(self, value):
        self.value = value


class Annotated(typing.NamedTuple):
    """The targets of one batch, as the Distiller's steps hand them to Keras.

    Args:
        labels: labels in the structure of the student's outputs, mixed where
            the view is, or `None`.
        teacher: the teacher's outputs for the view.
        scored_labels: labels that the label metrics may look at: `None` where
            images are mixed, since no class is right then.
        features: list of the teacher's inner outputs, one per hint.
    """

    labels: typing.Any
    teacher: typing.Any
    scored_labels: typing.Any = None
    features: list = ()


class Term:
    """One loss of `compile()`, its weight, and the logs of its parts."""

    def __init__(self, loss, weight, prefix):
        self.loss = as_loss(loss)
        self.weight = 1.0 if weight is None else float(weight)
        self.uses_teacher = isinstance(self.loss, DistillationLoss)
        if self.uses_teacher:
            self.parts = [
                (name, part_weight, _Part(function, self.loss))
                for name, (part_weight, function) in self.loss.parts().items()
            ]
        else:
            self.parts = [("loss", 1.0, self.loss)]
        names = [name for name, _, _ in self.parts]
        if prefix:
            names = [f"{prefix}_{name}" for name in names]
        elif not self.uses_teacher:
            names = []  # Keras logs a single plain loss as `loss` already.
        self.trackers = [keras.metrics.Mean(name=name) for name in names]


class Objective(keras.losses.Loss):
    """The weighted sum of all losses over all outputs.

    Args:
        loss: a loss, or a list or dict of losses in the structure of the
            student's outputs, as for `keras.Model.compile`. A
            `DistillationLoss` gets labels and teacher, others the labels.
        loss_weights: `None`, or floats in the same structure.
        names: names of the student's outputs, or `None`.
    """

    def __init__(self, loss, loss_weights=None, names=None):
        super().__init__(name="objective")
        self.names = names
        weights = _weights_like(loss, loss_weights)
        paths = _outputs.output_paths(loss)
        terms = [
            None if entry is None else Term(entry, weight, _prefix(path, names))
            for path, entry, weight in zip(paths, tree.flatten(loss), weights)
        ]
        if not any(terms):
            raise ValueError(f"No output has a loss. Received: loss={loss}")
        self.terms = tree.pack_sequence_as(loss, terms)

    @property
    def _used_terms(self):
        return [term for term in tree.flatten(self.terms) if term is not None]

    @property
    def trackers(self):
        return [t for term in self._used_terms for t in term.trackers]

    @property
    def uses_labels(self):
        return any(
            not term.uses_teacher or term.loss.uses_labels
            for term in self._used_terms
        )

    def terms_of(self, outputs):
        """Return `(path, term)` for each output, the term `None` if unused."""
        paths = _outputs.output_paths(outputs)
        terms = _outputs.per_output(self.terms, paths, self.names, "loss")
        for term in terms:
            if len(tree.flatten(term)) != 1:
                raise ValueError(
                    "`loss` must have one loss per output. Received "
                    f"{len(tree.flatten(term))} for one of {len(paths)} "
                    "outputs. To add losses up, write a `DistillationLoss` "
                    "that does."
                )
        return [
            (path, tree.flatten(term)[0]) for path, term in zip(paths, terms)
        ]

    def __call__(self, y_true, y_pred, sample_weight=None):
        targets, outputs = y_true.value, y_pred.value
        sample_weight = sample_weight.value
        count = ops.shape(tree.flatten(outputs)[0])[0]
        total = 0.0
        for index, (path, term) in enumerate(self.terms_of(outputs)):
            if term is not None:
                weights = _outputs.select(
                    sample_weight, path, index, self.names
                )
                total = total + term.weight * _value(
                    term,
                    _target(targets, term, path, index, self.names),
                    _outputs.at(outputs, path),
                    weights,
                    count,
                )
        return total

    def get_config(self):
        raise NotImplementedError(
            "The Distiller saves the losses given to `compile()`, not this."
        )


def as_loss(loss):
    """Return a `keras.losses.Loss` for a loss, its name, or a function."""
    if isinstance(loss, str) and loss.lower() in ("ce", "crossentropy"):
        raise ValueError(
            f"The loss {loss!r} leaves the kind of cross-entropy open. Name it,"
            " e.g. keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
        )
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss
    # A bare function would miss the reduction and, on several devices, its
    # division by their number.
    return FunctionLoss(loss)


class FunctionLoss(keras.losses.Loss):
    """A function of `(y_true, y_pred)` to values per sample, as a loss."""

    def __init__(self, function, **kwargs):
        super().__init__(name=getattr(function, "__name__", "loss"), **kwargs)
        self.call = function


class _Part(FunctionLoss):
    """A part of a DistillationLoss, with its reduction and dtype."""

    def __init__(self, function, loss):
        super().__init__(function, reduction=loss.reduction, dtype=loss.dtype)


def _value(term, target, output, sample_weight, count):
    """Return the value of a term and log its parts."""
    total = 0.0
    for index, (_, weight, part) in enumerate(term.parts):
        value = part(target, output, sample_weight)
        if term.trackers:
            term.trackers[index].update_state(
                value * _backend.num_replicas(), sample_weight=count
            )
        total = total + weight * value
    return total


def _target(targets, term, path, index, names):
    """Return what the loss of one output compares with."""
    labels = _outputs.select(targets.labels, path, index, names)
    if term.uses_teacher:
        target = {"teacher": _outputs.at(targets.teacher, path)}
        return target if labels is None else {**target, "labels": labels}
    if labels is None:
        raise ValueError(
            f"The loss {term.loss.name!r} compares with labels, and the data "
            "has none. Pass `(x, y)`, or match the teacher with "
            "`FunctionMatching()` or another `DistillationLoss`."
        )
    return labels


def _weights_like(loss, loss_weights):
    """Return one weight per loss, `None` for those without."""
    count = len(tree.flatten(loss))
    if loss_weights is None:
        return [None] * count
    if isinstance(loss, dict) and isinstance(loss_weights, dict):
        unknown = set(loss_weights) - set(loss)
        if not unknown:
            loss_weights = {key: loss_weights.get(key) for key in loss}
    else:
        unknown = ()
    weights = tree.flatten(loss_weights)
    if unknown or len(weights) != count:
        raise ValueError(
            "`loss_weights` must have one weight per loss. Received: "
            f"loss_weights={loss_weights} for {count} losses"
            + (f" of outputs {sorted(loss)}." if unknown else ".")
        )
    return weights


def _prefix(path, names):
    """Return the name of an output for logs, empty if it is the only one."""
    if names is not None and len(path) == 1 and isinstance(path[0], int):
        if path[0] < len(names) > 1:
            return str(names[path[0]])
        return ""
    return "_".join(str(key) for key in path)
