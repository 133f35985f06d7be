"""ValueWatch: finds values that cannot be right, and reports the batch.

A compiled step cannot raise an error. So it counts such values, and the counts
are read from its logs one step later, when they are on the host anyway: the
device never waits. Teacher outputs that are not finite are replaced by zeros,
so that they do not destroy the student.
"""

import keras
from keras import ops
from keras import tree

from keras_distill.losses._most_probable import MostProbable
from keras_distill.losses._relational_loss import any_place
from keras_distill.losses._value_checks import bad_labels
from keras_distill.losses._value_checks import contradicts

LOG = "values_that_can_not_be_right"

# Causes come before their effects, because the first one found is reported.
_NOT_FINITE, _TEACHER, _STUDENT, _LABELS, _LOSS = range(5)
# Whether outputs are logits or probabilities is the same in every batch. A step
# that is not compiled checks only the first batches of an epoch, to save time.
_BATCHES = 8


class ValueWatch:
    """Checks the values of labels and outputs, epoch by epoch."""

    def __init__(self):
        self.metric = _Counts()
        self.calls = 0
        self._pending = None

    def check_terms(self, targets, terms):
        """Check one output of both models and its labels.

        Args:
            targets: the `OutputTargets` of that output.
            terms: list with the `OutputTerm` of each of its losses.
        """
        if self.calls < _BATCHES:
            self._check_outputs(targets, terms)
        self.check_labels(targets, terms, targets.output.shape[-1])

    def _check_outputs(self, targets, terms):
        losses = [t.loss for t in terms if t.uses_teacher]
        for loss in losses[:1]:
            kind = loss.predicts, loss.from_logits
            for output in targets.teachers():
                if not isinstance(output, MostProbable):
                    self.count(_TEACHER, contradicts(output, *kind))
            self.count(_STUDENT, contradicts(targets.output, *kind))

    def check_labels(self, targets, terms, num_classes):
        """Check the labels of one output.

        Args:
            targets: the `OutputTargets` of that output.
            terms: list with the `OutputTerm` of each of its losses.
            num_classes: the number of classes.
        """
        for term in terms:
            if _compares_with_labels(term):
                labels = targets.raw_labels
                if labels is not None and not targets.mixes_labels:
                    labels = targets.labels()
                    self.count(
                        _LABELS,
                        bad_labels(
                            labels,
                            (*targets.output.shape[:-1], num_classes),
                            term.loss.predicts,
                            targets.place_weights,
                        ),
                    )
                break

    def check_teacher(self, outputs):
        """Count rows that are not finite; return outputs that are."""
        return tree.map_structure(self._checked, outputs)

    def _checked(self, output):
        if isinstance(output, MostProbable):
            self._count_not_finite(output.fields["log_probs"])
            return output.with_fields(
                tree.map_structure(_finite, output.fields)
            )
        self._count_not_finite(output)
        return _finite(output)

    def _count_not_finite(self, output):
        finite = ops.isfinite(ops.cast(output, "float32"))
        bad = any_place(ops.logical_not(finite))
        self.count(_NOT_FINITE, ops.sum(ops.cast(bad, "float32")))

    def check_loss(self, loss):
        """Count a loss that is not finite."""
        bad = ops.logical_not(ops.isfinite(loss))
        self.count(_LOSS, ops.cast(bad, "float32"))

    def count(self, kind, number):
        """Add to one of the counts."""
        self.metric.update_state(kind, number)

    def collect(self, logs):
        """Take the counts of a finished step out of its logs."""
        self._pending = (self.calls, logs.pop(LOG))
        self.calls += 1

    def raise_pending(self):
        """Raise if the last step had such values. Call it before the next.

        Raises:
            ValueError: with the number of the batch.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        call, counts = pending
        counts = ops.convert_to_numpy(counts)
        for kind, count in enumerate(counts):
            if count > 0:
                raise ValueError(
                    _MESSAGES[kind].format(count=int(count), batch=call)
                    + _SWITCH_OFF
                )

    def start_epoch(self):
        """Raise what is pending, and count batches from 0 again."""
        self.raise_pending()
        self.calls = 0


def _finite(output):
    finite = ops.isfinite(ops.cast(output, "float32"))
    return ops.where(finite, output, ops.zeros_like(output))


_SWITCH_OFF = " To switch this check off, use `compile(check_values=False)`."


def _contradiction(role):
    return (
        f"The outputs of the {role} contradict `from_logits` of the loss. "
        "Received: batch {batch} of this epoch (counted from 0). With "
        "`from_logits=True` outputs must be logits, but these look like "
        "probabilities: none is below 0, and each row adds up to 1 (or each "
        "value lies between 0 and 1). With `from_logits=False` outputs must be "
        "probabilities, but these are not. Set `from_logits` to what both "
        "models return, or change the last activation of one model."
    )


def _compares_with_labels(term):
    """Return whether a term compares labels with our own loss for labels."""
    loss = term.loss
    return (
        term.compares_with_teacher
        and loss.predicts in ("classes", "labels")
        and loss.uses_labels
        and getattr(loss, "label_loss", None) is None
    )


_MESSAGES = {
    _NOT_FINITE: (
        "The teacher must return finite outputs. Received: NaN or infinity "
        "for {count} rows of batch {batch} of this epoch (counted from 0). "
        "Check the teacher on that batch, and whether its inputs have the "
        "range and preprocessing that it was trained with. These rows were "
        "replaced by zeros, so the student is intact if its own outputs are "
        "finite."
    ),
    _TEACHER: _contradiction("teacher"),
    _STUDENT: _contradiction("student"),
    _LABELS: (
        "Labels must be valid. Received: {count} invalid labels in batch "
        "{batch} of this epoch (counted from 0). Class indices must be whole "
        "numbers from 0 to the number of classes - 1, and one-hot labels must "
        "add up to 1. Give labels that mean 'no label' a `sample_weight` of 0, "
        "or use a `label_loss` with `ignore_class`. For several labels per "
        "sample use `BinaryKD()`, whose labels lie between 0 and 1."
    ),
    _LOSS: (
        "The loss must be finite. Received: NaN or infinity in batch {batch} "
        "of this epoch (counted from 0). So weights of the student may be NaN: "
        "load them again. Check whether inputs, labels and sample weights of "
        "that batch are finite, and whether the learning rate is too large."
    ),
}


class _Counts(keras.metrics.Metric):
    """How often each kind of value occurred since the epoch began."""

    def __init__(self):
        super().__init__(name=LOG, dtype="float32")
        self.counts = [
            self.add_variable(shape=(), initializer="zeros", name=f"count_{i}")
            for i in range(len(_MESSAGES))
        ]

    def update_state(self, kind, number):
        self.counts[kind].assign_add(number)

    def result(self):
        return ops.stack([count.value for count in self.counts])
