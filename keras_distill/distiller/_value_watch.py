"""ValueWatch: notices values that can't be right, and says in which batch.

A compiled step can't raise. It counts, and the counts come back with the logs
and are looked at one step later, when they are there anyway. So watching costs
no wait for the device. Zeros stand in for teacher outputs that are not finite,
so that the student is not destroyed.
"""

import keras
from keras import ops
from keras import tree

from keras_distill.losses._value_checks import bad_labels
from keras_distill.losses._value_checks import contradicts

LOG = "values_that_can_not_be_right"

_NOT_FINITE, _TEACHER, _STUDENT, _LABELS = range(4)
# Logits or probabilities: that is the same in every batch. A step that isn't
# compiled looks at so many batches of an epoch, and saves the time after that.
_BATCHES = 8


class ValueWatch:
    """Watches the values of one epoch after another."""

    def __init__(self):
        self.metric = _Counts()
        self._calls = 0
        self._pending = None

    def check_terms(self, belonging, terms):
        """Look at one output of both models and at its labels.

        Args:
            belonging: the `OutputTargets` of that output.
            terms: list with the `Term` of each of its losses.
        """
        if self._calls < _BATCHES:
            self._check_outputs(belonging, terms)
        self._check_labels(belonging, terms)

    def _check_outputs(self, belonging, terms):
        losses = [t.loss for t in terms if t.uses_teacher]
        for loss in losses[:1]:
            kind = loss.predicts, loss.from_logits
            for output in belonging.teachers():
                self.count(_TEACHER, contradicts(output, *kind))
            self.count(_STUDENT, contradicts(belonging.output, *kind))

    def _check_labels(self, belonging, terms):
        for term in terms:
            if _compares_with_labels(term):
                labels = belonging.raw_labels
                if labels is not None and not belonging.mixes_labels:
                    labels = belonging.labels()
                    self.count(
                        _LABELS,
                        bad_labels(
                            labels,
                            belonging.output,
                            term.loss.predicts,
                            belonging.place_weights,
                        ),
                    )
                break

    def check_teacher(self, outputs):
        """Count rows that are not finite; return outputs that are."""
        for output in tree.flatten(outputs):
            finite = ops.isfinite(ops.cast(output, "float32"))
            axes = tuple(range(1, len(output.shape)))
            rows = ops.all(finite, axis=axes) if axes else finite
            bad = ops.logical_not(rows)
            self.count(_NOT_FINITE, ops.sum(ops.cast(bad, "float32")))
        return tree.map_structure(
            lambda o: ops.where(ops.isfinite(o), o, ops.zeros_like(o)), outputs
        )

    def count(self, kind, number):
        """Add to one of the counts."""
        self.metric.update_state(kind, number)

    def collect(self, logs):
        """Take the counts of a finished step out of its logs."""
        self._pending = (self._calls, logs.pop(LOG))
        self._calls += 1

    def settle(self):
        """Raise if the last step met such values; call it before the next.

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
                    + " `compile(check_values=False)` switches this check off."
                )

    def start_epoch(self):
        """Settle what is pending and count batches from 0 again."""
        self.settle()
        self._calls = 0


def _contradiction(role):
    return (
        f"The outputs of the {role} contradict `from_logits` of the loss in "
        "batch {batch} of this epoch (counted from 0). With `from_logits=True`"
        " they must be logits, and are probabilities: none below 0, and each "
        "row adds up to 1 (or each value lies between 0 and 1). With "
        "`from_logits=False` they must be probabilities, and are not. Set "
        "`from_logits` to what both models return, or change the last "
        "activation of one."
    )


def _compares_with_labels(term):
    """Tell whether a term compares labels in our own way, which is known."""
    loss = term.loss
    return (
        term.compares_with_teacher
        and loss.predicts in ("classes", "labels")
        and loss.uses_labels
        and getattr(loss, "label_loss", None) is None
    )


_MESSAGES = {
    _NOT_FINITE: (
        "The teacher returned NaN or infinity for {count} rows of batch "
        "{batch} of this epoch (counted from 0). Check the teacher on that "
        "batch, and that its inputs have the range and preprocessing that it "
        "was trained with. The student is intact: zeros stood in for these "
        "rows."
    ),
    _TEACHER: _contradiction("teacher"),
    _STUDENT: _contradiction("student"),
    _LABELS: (
        "{count} labels of batch {batch} of this epoch (counted from 0) can't "
        "be right. Class indices must be whole numbers from 0 to the number of "
        "classes - 1, and one-hot labels must add up to 1. Give labels that "
        "mean 'no label' a `sample_weight` of 0, or use a `label_loss` with "
        "`ignore_class`. For several labels at once use `BinaryKD()`, whose "
        "labels lie between 0 and 1, each."
    ),
}


class _Counts(keras.metrics.Metric):
    """How often each kind of value was met since the epoch began."""

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
