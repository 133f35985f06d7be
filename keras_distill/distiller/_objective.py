"""Objective: everything that is minimised, as one Keras loss.

Keras matches losses with outputs by comparing the structures of `y_true` and
`y_pred`. The targets of distillation (labels and teacher outputs) have a
structure of their own. So the Distiller resolves its losses and hints here and
passes Keras a single loss with a single opaque target (`Leaf`). Keras does the
rest: regularisers, loss scaling, distribution strategies, the log of `loss`.
"""

import keras
from keras import ops
from keras import tree

from keras_distill import _schedules
from keras_distill._graphs import _outputs
from keras_distill.distiller import _hint_weights
from keras_distill.distiller._targets import OutputTargets
from keras_distill.distiller._terms import HintTerm
from keras_distill.distiller._terms import OutputTerm
from keras_distill.losses import _weighting
from keras_distill.losses._combined_loss import CombinedLoss
from keras_distill.losses._weighting import FunctionLoss


class Leaf:
    """Hides a structure from Keras, which treats unknown objects as leaves."""

    def __init__(self, value):
        self.value = value


class Objective(keras.losses.Loss):
    """The weighted sum of all losses over all outputs, and of all hints.

    Args:
        loss: a loss, or a list or dict of losses in the structure of the
            student's outputs, as for `keras.Model.compile`. A
            `DistillationLoss` gets labels and teacher outputs, other losses the
            labels. `None` for the hints alone.
        loss_weights: `None`, or numbers, schedules or variables in the same
            structure.
        names: names of the student's outputs, or `None`.
        hints: list of `Hint`.
        watch: the `ValueWatch`, or `None`.
        chunks: the `TokenChunks`, or `None`. With them, the student's outputs
            are hidden states.

    Raises:
        ValueError: if there are neither losses nor hints, or if `loss_weights`
            does not fit `loss`.
    """

    def __init__(
        self, loss, loss_weights, names, hints, watch=None, chunks=None
    ):
        super().__init__(name="objective")
        self.names, self.watch, self.chunks = names, watch, chunks
        self.hint_terms = [HintTerm(h, i) for i, h in enumerate(hints)]
        self.hint_trackers = [keras.metrics.Mean(name="hint_loss")][
            : len(self.hint_terms)
        ]
        if names and len(names) > 1 and not tree.is_nested(loss):
            # One term for each output, with its own logs.
            loss = [loss] * len(names)
            if not tree.is_nested(loss_weights):
                loss_weights = [loss_weights] * len(names)
        groups = [
            None
            if entry is None
            else Leaf(_terms_of_output(as_loss(entry), weight, path, names))
            for path, entry, weight in zip(
                _outputs.output_paths(loss),
                tree.flatten(loss),
                _weights_like(loss, loss_weights),
            )
        ]
        if not any(groups) and not hints:
            raise ValueError(
                "There is nothing to minimise: no output has a loss, and there "
                f"are no hints. Received: loss={loss}"
            )
        self.groups = None
        if any(groups):
            self.groups = tree.pack_sequence_as(loss, groups)
        if chunks is not None:
            chunks.check(self.output_terms)

    @property
    def output_terms(self):
        """The `OutputTerm` of every loss of every output."""
        groups = [group for group in tree.flatten(self.groups) if group]
        return [term for group in groups for term in group.value]

    @property
    def trackers(self):
        """The metrics that log the parts of the loss."""
        terms = self.output_terms
        trackers = [t for term in terms for t in term.trackers.values()]
        if len(terms) == 1 and not terms[0].compares_with_teacher:
            if not self.hint_terms:
                trackers = []  # Keras logs a single plain loss as `loss`.
        return trackers + self.hint_trackers

    @property
    def uses_teacher(self):
        """Whether anything that is minimised depends on the teacher."""
        return bool(self.hint_terms) or any(
            term.uses_teacher for term in self.output_terms
        )

    @property
    def variables(self):
        """The variables among the weights, which are read in every step."""
        return [v for term in self.output_terms for v in term.variables]

    @property
    def uses_step(self):
        """Whether anything depends on the optimizer's iterations."""
        terms = [*self.output_terms, *self.hint_terms]
        return any(term.has_schedules for term in terms)

    def moment(self, step):
        """Return the `Moment` of a step.

        Args:
            step: function that returns the optimizer's iterations. It is
                called only if there is a schedule.
        """
        return _schedules.Moment(
            # A copy: the optimizer counts on before metrics read it.
            ops.add(step(), 0) if self.uses_step else None,
            {id(v): ops.convert_to_tensor(v) for v in self.variables},
        )

    def scheduled_values(self, moment):
        """Return the value of every schedule at a moment, by its log name."""
        values = {}
        for term in (*self.hint_terms, *self.output_terms):
            values.update(term.scheduled_values(moment))
        return values

    def terms_by_output(self, outputs):
        """Return `(path, list of OutputTerm)` for each output.

        Args:
            outputs: the student's outputs, or symbolic tensors like them.

        Raises:
            ValueError: if the losses do not fit the outputs.
        """
        paths = _outputs.output_paths(outputs)
        groups = _outputs.per_output(self.groups, paths, self.names, "loss")
        for group in groups:
            count = len(tree.flatten(group))
            if count != 1:
                raise ValueError(
                    "`loss` must have one loss per output. Received: "
                    f"{count} losses for one of {len(paths)} outputs. To add "
                    "losses on one output, write `FunctionMatching() + 0.5 * "
                    "DIST()`. If the student's outputs depend on `training`, "
                    "it can be trained here; evaluate it without the Distiller."
                )
        groups = [tree.flatten(group)[0] for group in groups]
        return [
            (path, group.value if group else [])
            for path, group in zip(paths, groups)
        ]

    def __call__(self, y_true, y_pred, sample_weight=None):
        targets = y_true.value.with_followed_weights()
        outputs, features = y_pred.value
        total = 0.0
        for index, (path, terms) in enumerate(self.terms_by_output(outputs)):
            output = _outputs.at(outputs, path)
            of_output = OutputTargets(targets, path, index, self.names, output)
            if self.chunks is not None:
                total = total + self._value_in_chunks(targets, of_output, terms)
                continue
            if self.watch is not None:
                self.watch.check_terms(of_output, terms)
            for term in terms:
                total = total + term.value(of_output, targets.moment)
        total = total + self._hint_loss(targets, features)
        if self.watch is not None:
            self.watch.check_loss(total)
        return total

    def _value_in_chunks(self, targets, of_output, terms):
        if self.watch is not None:
            self.watch.check_labels(of_output, terms, self.chunks.num_classes)
        values, total = self.chunks.values(
            terms,
            of_output,
            targets.moment,
            targets.teacher_head,
            targets.training,
        )
        for term, values_of_term in zip(terms, values):
            total = total + term.value(
                of_output, targets.moment, values_of_term
            )
        return total

    def _hint_loss(self, targets, features):
        """Return the sum of the terms of all hints, and log it.

        Args:
            targets: the `Targets` of the batch.
            features: list of the student's projected features.
        """
        if not self.hint_terms:
            return 0.0
        weights = _hint_weights.of_features(targets.weights)
        total = 0.0
        for term, teacher, student in zip(
            self.hint_terms, targets.features, features, strict=True
        ):
            value = term.value(teacher, student, weights, targets.moment)
            total = total + value
        _weighting.log(self.hint_trackers[0], total, features[0])
        return total

    def get_config(self):
        raise NotImplementedError(
            "The Distiller saves the losses given to `compile()`, not this."
        )


def _terms_of_output(loss, weight, path, names):
    """Return the terms of one output: one for each loss of a sum."""
    prefix = _prefix(path, names)
    weight = 1.0 if weight is None else _as_weight(weight)
    if not isinstance(loss, CombinedLoss):
        return [OutputTerm(loss, (weight,), prefix)]
    terms, taken = [], {}
    for weights, member in loss.members():
        count = taken[member.name] = taken.get(member.name, 0) + 1
        name = member.name if count == 1 else f"{member.name}_{count}"
        label = f"{prefix}_{name}" if prefix else name
        terms.append(OutputTerm(member, (weight, *weights), label))
    return terms


def _as_weight(weight):
    if isinstance(weight, keras.Variable):
        return weight
    return _schedules.number_or_schedule(
        "loss_weights", weight, lambda name, value: float(value)
    )


def as_loss(loss):
    """Return a `keras.losses.Loss` for a loss, its name, or a function."""
    if isinstance(loss, str) and loss.lower() in ("ce", "crossentropy"):
        raise ValueError(
            "The name of the loss does not say which cross-entropy is meant. "
            f"Received: loss={loss!r}. Use, for example, "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
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
