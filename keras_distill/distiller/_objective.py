"""Objective: everything that is minimised, as one Keras loss.

Keras matches losses with outputs by comparing the structures of `y_true` and
`y_pred`, and the targets of distillation have one of their own. So the
Distiller resolves its losses and hints here and gives Keras a single loss for a
single opaque target (`Leaf`). Everything else stays Keras's: regularisers, loss
scaling, distribution strategies, the `loss` log.
"""

import keras
from keras import ops
from keras import tree

from keras_distill import _schedules
from keras_distill._graphs import _outputs
from keras_distill.distiller._targets import OutputTargets
from keras_distill.losses import _label_loss
from keras_distill.losses import _value_checks
from keras_distill.losses import _weighting
from keras_distill.losses._combined_loss import CombinedLoss
from keras_distill.losses._combined_loss import target_of
from keras_distill.losses._distillation_loss import DistillationLoss
from keras_distill.losses._label_loss import as_one_hot_or_sparse
from keras_distill.losses._weighting import FunctionLoss
from keras_distill.teachers import _average


class Leaf:
    """Hides a structure from Keras, which takes unknown objects as leaves."""

    def __init__(self, value):
        self.value = value


class Term:
    """One loss of one output, its weights, and the logs of its parts.

    Args:
        loss: a Keras loss.
        weights: numbers, schedules or variables, whose product is its weight.
        prefix: what stands before the names of its logs.
    """

    def __init__(self, loss, weights, prefix):
        self.loss, self.weights = loss, weights
        self.prefix = prefix
        self.compares_with_teacher = isinstance(loss, DistillationLoss)
        names = ["loss"]
        if self.compares_with_teacher:
            names = list(loss.parts())
        self.trackers = {
            name: _tracker(f"{prefix}_{name}" if prefix else name)
            for name in names
        }

    @property
    def uses_teacher(self):
        return self.compares_with_teacher and self.loss.uses_teacher

    @property
    def uses_labels(self):
        return not self.compares_with_teacher or self.loss.uses_labels

    @property
    def has_schedules(self):
        return any(map(_schedules.is_schedule, self.weights)) or (
            self.compares_with_teacher and self.loss.has_schedules
        )

    @property
    def variables(self):
        """The variables among the weights."""
        return [w for w in self.weights if isinstance(w, keras.Variable)]

    def scheduled_values(self, moment):
        """Return the value of every schedule at a moment, by its log name."""
        values = {}
        if self.variables or any(map(_schedules.is_schedule, self.weights)):
            values["weight"] = _schedules.product_at(self.weights, moment)
        if self.compares_with_teacher:
            values.update(self.loss.scheduled_values(moment.step))
        prefix = f"{self.prefix}_" if self.prefix else ""
        return {f"{prefix}{name}": value for name, value in values.items()}

    def value(self, belonging, moment):
        """Return the value of this term for one output, and log its parts.

        Args:
            belonging: the `OutputTargets` of that output.
            moment: the `Moment` of the step, for schedules.
        """
        parts = {"loss": (1.0, self.loss.call)}
        if self.compares_with_teacher:
            parts = self.loss.at(moment.step).parts()
        target = target_of(self.loss, self._target(belonging))
        total = 0.0
        for name, (weight, function) in parts.items():
            value = _weighting.weighted_value(
                function, self.loss, target, belonging.output, belonging.weights
            )
            _weighting.log(self.trackers[name], value, belonging.output)
            total = total + _schedules.value_at(weight, moment.step) * value
        return total * _schedules.product_at(self.weights, moment)

    def _target(self, belonging):
        target = {}
        if self.uses_labels:
            labels = belonging.labels(self._num_classes(belonging))
            if labels is not None:
                target["labels"] = labels
                if belonging.moves_pixels and self._takes_values:
                    _value_checks.warn_of_coordinates(labels, self.loss)
            elif belonging.labels_of_others:
                raise ValueError(
                    "The data has labels, and none for this output. Received: "
                    f"labels for {belonging.labels_of_others}, and an output "
                    f"{'/'.join(map(str, belonging.path))!r} whose loss "
                    f"{self.loss.name!r} compares with labels."
                )
        if self.compares_with_teacher:
            target["teacher"] = self._teacher(belonging)
            weights = belonging.place_weights
            if weights is not None:
                target["sample_weight"] = weights
        return target

    @property
    def _takes_values(self):
        if self.compares_with_teacher:
            return self.loss.predicts == "values"
        return "crossentropy" not in self.loss.name

    def _teacher(self, belonging):
        teacher = belonging.teacher(
            lambda outputs: _average.average(
                outputs, self.loss.predicts, self.loss.from_logits
            )
        )
        dtype = keras.backend.standardize_dtype(teacher.dtype)
        if self.loss.predicts in ("classes", "labels") and "float" not in dtype:
            raise TypeError(
                "A teacher must return logits or probabilities. Received: "
                f"outputs of dtype '{dtype}', which look like decisions. "
                "Return what they were decided from; labels of a teacher are "
                "the `y` of ordinary training."
            )
        return teacher

    def _num_classes(self, belonging):
        """Return how many classes there are if labels are class indices."""
        if not belonging.mixes_labels or belonging.raw_labels is None:
            return None
        compared = getattr(self.loss, "label_loss", self.loss)
        if compared is not None and _label_loss.is_sparse(compared):
            raise ValueError(
                "Where the view mixes images, labels are mixed as one-hot "
                "vectors, and this loss takes class indices alone. Received: "
                f"{compared!r}. Use `label_loss=None`, or a loss for one-hot "
                "labels, such as keras.losses.CategoricalCrossentropy."
            )
        if getattr(self.loss, "predicts", None) not in ("classes", None):
            return None
        labels, output = belonging.raw_labels.shape, belonging.output.shape
        # Where the view crops, places have another size before it.
        places = min(len(labels), len(output) - 1)
        labels = keras.KerasTensor((*output[:places], *labels[places:]))
        classes = output[-1]
        kind = as_one_hot_or_sparse(labels, output)
        return classes if kind == "sparse" and classes > 1 else None


class Objective(keras.losses.Loss):
    """The weighted sum of all losses over all outputs, and of all hints.

    Args:
        loss: a loss, or a list or dict of losses in the structure of the
            student's outputs, as for `keras.Model.compile`. A
            `DistillationLoss` gets labels and teacher, others the labels.
            Without any loss, the hints alone are minimised.
        loss_weights: `None`, or numbers, schedules or variables in the same
            structure.
        names: names of the student's outputs, or `None`.
        hints: the `HintTerms`.
        watch: the `ValueWatch`, or `None`.
    """

    def __init__(self, loss, loss_weights, names, hints, watch=None):
        super().__init__(name="objective")
        self.names, self.hints, self.watch = names, hints, watch
        if names and len(names) > 1 and not tree.is_nested(loss):
            # One term for each output, with logs of its own.
            loss = [loss] * len(names)
            if not tree.is_nested(loss_weights):
                loss_weights = [loss_weights] * len(names)
        weights = _weights_like(loss, loss_weights)
        paths = _outputs.output_paths(loss)
        entries = [
            None if entry is None else (as_loss(entry), weight, path)
            for path, entry, weight in zip(paths, tree.flatten(loss), weights)
        ]
        terms = [
            None if entry is None else _Terms(_terms(*entry, names))
            for entry in entries
        ]
        if not any(terms) and not hints:
            raise ValueError(
                f"No output has a loss, and there are no hints. Received: "
                f"loss={loss}"
            )
        self.terms = tree.pack_sequence_as(loss, terms) if any(terms) else None

    @property
    def all_terms(self):
        groups = tree.flatten(self.terms)
        return [term for group in groups if group for term in group.terms]

    @property
    def trackers(self):
        terms = self.all_terms
        trackers = [t for term in terms for t in term.trackers.values()]
        if len(terms) == 1 and not terms[0].compares_with_teacher:
            if not self.hints:
                trackers = []  # Keras logs a single plain loss as `loss`.
        return trackers + self.hints.trackers

    @property
    def uses_teacher(self):
        """Whether anything that is minimised depends on the teacher."""
        return bool(self.hints) or any(t.uses_teacher for t in self.all_terms)

    @property
    def variables(self):
        """The variables among the weights, which are read at every step."""
        return [v for term in self.all_terms for v in term.variables]

    @property
    def uses_step(self):
        """Whether anything depends on the optimizer's iterations."""
        hints = any(hint.has_schedules for hint in self.hints.hints)
        return hints or any(term.has_schedules for term in self.all_terms)

    def moment(self, step):
        """Return the `Moment` of a step; it is read if a schedule asks."""
        return _schedules.Moment(
            # A copy: the optimizer counts on before metrics read it.
            ops.add(step(), 0) if self.uses_step else None,
            {id(v): ops.convert_to_tensor(v) for v in self.variables},
        )

    def scheduled_values(self, moment):
        """Return the value of every schedule at a moment, by its log name."""
        values = self.hints.scheduled_values(moment.step)
        for term in self.all_terms:
            values.update(term.scheduled_values(moment))
        return values

    def terms_of(self, outputs):
        """Return `(path, terms)` for each output, a list, empty if unused."""
        paths = _outputs.output_paths(outputs)
        groups = _outputs.per_output(self.terms, paths, self.names, "loss")
        for group in groups:
            if len(tree.flatten(group)) != 1:
                raise ValueError(
                    "`loss` must have one loss per output. Received "
                    f"{len(tree.flatten(group))} for one of {len(paths)} "
                    "outputs. Losses on one output are added: "
                    "`FunctionMatching() + 0.5 * DIST()`. If the student's "
                    "outputs depend on `training`, it can be trained here; "
                    "evaluate it by itself."
                )
        groups = [tree.flatten(group)[0] for group in groups]
        return [
            (path, group.terms if group else [])
            for path, group in zip(paths, groups)
        ]

    def __call__(self, y_true, y_pred, sample_weight=None):
        targets = y_true.value.with_followed_weights()
        outputs, features = y_pred.value
        total = 0.0
        for index, (path, terms) in enumerate(self.terms_of(outputs)):
            belonging = OutputTargets(
                targets, path, index, self.names, _outputs.at(outputs, path)
            )
            if self.watch is not None:
                self.watch.check_terms(belonging, terms)
            for term in terms:
                total = total + term.value(belonging, targets.moment)
        return total + self.hints.value(targets, features)

    def get_config(self):
        raise NotImplementedError(
            "The Distiller saves the losses given to `compile()`, not this."
        )


class _Terms:
    """The terms of one output; one leaf of a structure."""

    def __init__(self, terms):
        self.terms = terms


def _terms(loss, weight, path, names):
    """Return the terms of a loss: one for each loss of a sum."""
    prefix = _prefix(path, names)
    weight = 1.0 if weight is None else _as_weight(weight)
    if not isinstance(loss, CombinedLoss):
        return [Term(loss, (weight,), prefix)]
    terms, taken = [], {}
    for weights, member in loss.members():
        count = taken[member.name] = taken.get(member.name, 0) + 1
        name = member.name if count == 1 else f"{member.name}_{count}"
        label = f"{prefix}_{name}" if prefix else name
        terms.append(Term(member, (weight, *weights), label))
    return terms


def _as_weight(weight):
    if isinstance(weight, keras.Variable):
        return weight
    return _schedules.number_or_schedule(
        "loss_weights", weight, lambda name, value: float(value)
    )


def _tracker(name):
    return keras.metrics.Mean(name=name)


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
