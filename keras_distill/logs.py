"""KeepsLogs: what a Distiller reports of its training.

`loss` is what is minimised and Keras's own log. Beside it stand the parts of
the loss, the metrics that look at labels (Keras's), and those that look at the
teacher (ours).
"""

from keras_distill.teachers import health


class KeepsLogs:
    """Adds the parts of the loss and the teacher metrics to Keras's logs."""

    def _start_logs(self, objective, teacher_metrics, teacher_health, more):
        # In a plain object: Keras would track the metrics of an earlier
        # `compile()` for ever, and save all of them in checkpoints.
        self._logs = _Logs(objective, teacher_metrics, teacher_health, more)
        self._steps_taken = 0

    @property
    def _objective(self):
        return self._logs.objective

    @property
    def metrics(self):
        metrics = super().metrics
        return metrics + self._logs.metrics if self.compiled else metrics

    def get_metrics_result(self):
        label_metrics = self._compile_metrics
        if label_metrics is not None and not label_metrics.built:
            return self._results(without=label_metrics)
        return self._results()

    def _results(self, without=None):
        results = {}
        for metric in self.metrics:
            if metric is not without and metric is not self._logs.health_metric:
                value = metric.result()
                named = value if isinstance(value, dict) else {}
                results.update(named or {metric.name: value})
        return results

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if y.teacher is not None:
            self._logs.teacher_metrics.update_state(
                y.teacher, y_pred, sample_weight
            )
        if y.scored_labels is None:
            logs = self._results(without=self._compile_metrics)
        else:
            logs = super().compute_metrics(
                x, y.scored_labels, y_pred, sample_weight
            )
        if self._logs.health is not None:
            logs[health.LOG] = self._logs.health_metric.result()
        return logs

    def _check_teacher(self, outputs):
        watched = self._logs.health
        return outputs if watched is None else watched.check(outputs)

    def _collect_logs(self, logs):
        if self._logs.health is not None:
            self._logs.health.collect(logs)

    def _settle_logs(self):
        if self._logs.health is not None:
            self._logs.health.settle()

    def reset_metrics(self):
        if self.compiled and self._logs.health is not None:
            self._logs.health.start_epoch()
        super().reset_metrics()


class _Logs:
    def __init__(self, objective, teacher_metrics, teacher_health, more):
        self.objective = objective
        self.teacher_metrics = teacher_metrics
        self.health = teacher_health
        self.health_metric = teacher_health and teacher_health.metric
        self.metrics = [*objective.trackers, *more, *teacher_metrics.metrics]
        if teacher_health is not None:
            self.metrics.append(self.health_metric)
