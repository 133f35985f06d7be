"""KeepsLogs: what a Distiller reports of its training.

`loss` is what is minimised and Keras's own log. Beside it stand the parts of
the loss, the metrics that look at labels (Keras's), and those that look at the
teacher (ours).
"""

import keras

from keras_distill.distiller import _value_watch
from keras_distill.distiller._hints import split


class KeepsLogs:
    """Adds the parts of the loss and the teacher metrics to Keras's logs."""

    def _start_logs(self, objective, teacher_metrics, log_schedules):
        # In a plain object: Keras would track the metrics of an earlier
        # `compile()` for ever, and save all of them in checkpoints.
        self._logs = _Logs(objective, teacher_metrics, log_schedules)
        self._steps_taken = 0

    @property
    def _objective(self):
        return self._logs.objective

    @property
    def metrics(self):
        metrics = super().metrics
        return metrics + self._logs.metrics if self.compiled else metrics

    @property
    def metrics_names(self):
        """The names of what `evaluate()` returns."""
        return list(self.get_metrics_result())

    def get_metrics_result(self):
        label_metrics = self._compile_metrics
        if label_metrics is not None and not label_metrics.built:
            return self._results(without=label_metrics)
        return self._results()

    def _results(self, without=None):
        results = {}
        teachers = {id(m) for m in self._logs.teacher_metrics.metrics}
        for metric in self.metrics:
            hidden = metric is without or metric.name == _value_watch.LOG
            if not hidden and id(metric) not in teachers:
                value = metric.result()
                named = value if isinstance(value, dict) else {}
                results.update(named or {metric.name: value})
        return {**results, **self._logs.teacher_metrics.logs()}

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        outputs, _ = split(y_pred)
        if y.teacher is None:
            self._logs.teacher_metrics.build(outputs)
        else:
            self._logs.teacher_metrics.update_state(y, outputs)
            self._logs.update_schedules(y.moment)
        labels = y.followed_labels()
        if labels is None:
            logs = self._results(without=self._compile_metrics)
        else:
            weights = y.with_followed_weights().weights
            logs = super().compute_metrics(x, labels, outputs, weights)
        if self._logs.watch is not None:
            logs[_value_watch.LOG] = self._logs.watch.metric.result()
        return logs

    def _check_teacher(self, outputs):
        watch = self._logs.watch
        return outputs if watch is None else watch.check_teacher(outputs)

    def _collect_logs(self, logs):
        if self._logs.watch is not None:
            self._logs.watch.collect(logs)

    def _settle_logs(self):
        if self._logs.watch is not None:
            self._logs.watch.settle()

    def train_on_batch(self, *args, **kwargs):
        logs = super().train_on_batch(*args, **kwargs)
        self._settle_logs()
        return logs

    def test_on_batch(self, *args, **kwargs):
        logs = super().test_on_batch(*args, **kwargs)
        self._settle_logs()
        return logs

    def reset_metrics(self):
        if self.compiled and self._logs.watch is not None:
            self._logs.watch.start_epoch()
        super().reset_metrics()


class _Logs:
    def __init__(self, objective, teacher_metrics, log_schedules):
        self.objective = objective
        self.teacher_metrics = teacher_metrics
        self.watch = objective.watch
        self.schedules = []
        if log_schedules:
            start = objective.moment(lambda: 0)
            self.schedules = [
                _Latest(name=name) for name in objective.scheduled_values(start)
            ]

    @property
    def metrics(self):
        metrics = [
            *self.objective.trackers,
            *self.schedules,
            *self.teacher_metrics.metrics,
        ]
        return metrics + ([] if self.watch is None else [self.watch.metric])

    def direction_of(self, name):
        """Return `"min"` or `"max"`, or `None` if the log is not ours."""
        if name in [tracker.name for tracker in self.objective.trackers]:
            return "min"
        return self.teacher_metrics.direction_of(name)

    def update_schedules(self, moment):
        if self.schedules:
            values = self.objective.scheduled_values(moment)
            for metric in self.schedules:
                metric.update_state(values[metric.name])


class _Latest(keras.metrics.Metric):
    """The value of a schedule at the last step."""

    def __init__(self, name):
        super().__init__(name=name, dtype="float32")
        self.value = self.add_variable(
            shape=(), initializer="zeros", name="value"
        )

    def update_state(self, value):
        self.value.assign(value)

    def result(self):
        # A copy: validation assigns another value before Keras reads it.
        return keras.ops.add(self.value, 0.0)
