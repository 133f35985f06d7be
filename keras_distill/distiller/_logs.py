"""Logs: what a Distiller reports of its training.

`loss` is what is minimised, and Keras logs it. Beside it are logged the parts
of the loss, the metrics that compare with labels (Keras updates them) and the
metrics that compare with the teacher.
"""

import keras

from keras_distill import _backend
from keras_distill.distiller import _value_watch


class Logs:
    """Adds the parts of the loss and the teacher metrics to Keras's logs.

    A plain object that each `compile()` makes: Keras would track the metrics of
    every earlier `compile()` and save all of them.

    Args:
        objective: the `Objective`.
        teacher_metrics: the `TeacherMetrics`.
        log_schedules: bool. Whether to log the values of schedules.
    """

    def __init__(self, objective, teacher_metrics, log_schedules):
        self.objective = objective
        self.teacher_metrics = teacher_metrics
        self.steps_taken = 0  # in this `fit()`
        self.steps_of_epoch = 0
        self._watch = objective.watch
        self._schedules = []
        if log_schedules:
            start = objective.moment(lambda: 0)
            self._schedules = [
                _Latest(name=name) for name in objective.scheduled_values(start)
            ]

    @property
    def metrics(self):
        """The metrics that Keras resets and keeps in the compiled step."""
        watch = [] if self._watch is None else [self._watch.metric]
        return [
            *self.objective.trackers,
            *self._schedules,
            *self.teacher_metrics.metrics,
            *watch,
        ]

    def direction_of(self, name):
        """Return `"min"` or `"max"`, or `None` if the log is Keras's."""
        if name in [tracker.name for tracker in self.objective.trackers]:
            return "min"
        return self.teacher_metrics.direction_of(name)

    def build(self, outputs):
        """Build the teacher metrics on the student's outputs."""
        self.teacher_metrics.build(outputs)

    def update(self, targets, outputs):
        """Update teacher metrics and schedules with a batch.

        Args:
            targets: the `Targets`.
            outputs: the student's outputs.
        """
        self.teacher_metrics.update_state(targets, outputs)
        if self._schedules:
            values = self.objective.scheduled_values(targets.moment)
            for metric in self._schedules:
                metric.update_state(values[metric.name])

    def results(self, metrics, without=None):
        """Return the values of metrics by the names of their logs.

        Args:
            metrics: the metrics of the Distiller: Keras's and ours.
            without: a metric that has no value yet, or `None`.
        """
        results = {}
        teachers = {id(metric) for metric in self.teacher_metrics.metrics}
        for metric in metrics:
            hidden = metric is without or metric.name == _value_watch.LOG
            if not hidden and id(metric) not in teachers:
                value = metric.result()
                named = value if isinstance(value, dict) else {}
                results.update(named or {metric.name: value})
        return {**results, **self.teacher_metrics.logs()}

    def checked_teacher(self, outputs):
        """Return teacher outputs that are finite; see `ValueWatch`."""
        if self._watch is None:
            return outputs
        return self._watch.check_teacher(outputs)

    def add_counts(self, logs):
        """Add the counts of the `ValueWatch` to the logs of a step."""
        if self._watch is not None:
            # Keras logs the mean over the replicas.
            counts = self._watch.metric.result() * _backend.num_replicas()
            logs[_value_watch.LOG] = counts
        return logs

    def after_step(self, logs):
        """Count a finished step, and take the counts of values from its logs.

        Args:
            logs: dict of the logs of the step, which is changed.
        """
        self.steps_taken += 1
        self.steps_of_epoch += 1
        if self._watch is not None:
            self._watch.collect(logs)

    def raise_pending(self):
        """Raise if the last step met values that cannot be right."""
        if self._watch is not None:
            self._watch.raise_pending()

    def continue_at(self, calls):
        """Count from here on in an epoch that continues after a restart.

        Args:
            calls: int, compiled calls of this epoch that were made before.
        """
        self.steps_taken += 1  # at least
        self.steps_of_epoch = calls
        if self._watch is not None:
            self._watch.calls = calls

    def start_epoch(self):
        """Raise what is pending, and count batches from 0 again."""
        self.steps_of_epoch = 0
        if self._watch is not None:
            self._watch.start_epoch()


class _Latest(keras.metrics.Metric):
    """The value of a schedule in the last step."""

    def __init__(self, name):
        super().__init__(name=name, dtype="float32")
        self.value = self.add_variable(
            shape=(), initializer="zeros", aggregation="mean", name="value"
        )

    def update_state(self, value):
        self.value.assign(value)

    def result(self):
        # A copy: validation assigns another value before Keras reads it.
        return keras.ops.add(self.value, 0.0)
