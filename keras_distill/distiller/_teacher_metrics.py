"""TeacherMetrics: the metrics of a `compile()` that compare with the teacher.

Keras updates the metrics that compare with labels. The others are updated here,
each with the output that it was given for. Their logs are named as Keras names
its own: the name of the output comes first if there are several outputs, and
`weighted_` if both lists have the same metric.
"""

import functools

from keras import tree

from keras_distill._graphs import _outputs
from keras_distill.distiller._targets import OutputTargets
from keras_distill.losses._most_probable import dense
from keras_distill.metrics._teacher_metric import TeacherMetric
from keras_distill.teachers import _average


class TeacherMetrics:
    """The teacher metrics among the `metrics` and `weighted_metrics` given.

    Args:
        metrics, weighted_metrics: as for `keras.Model.compile`.
        objective: the `Objective`, whose losses say what outputs mean.
    """

    def __init__(self, metrics, weighted_metrics, objective):
        self._given = (metrics, weighted_metrics)
        self._objective = objective
        flat = tree.flatten([metrics, weighted_metrics])
        self._ours = [m for m in flat if _is_ours(m)]
        self._entries = None if self._ours else []

    @property
    def metrics(self):
        if self._entries is None:
            return self._ours
        return [entry.metric for entry in self._entries]

    def __bool__(self):
        return bool(self._ours)

    def logs(self):
        """Return the value of each metric, by the name of its log."""
        if self._entries is None:
            return {}
        return {entry.log: entry.metric.result() for entry in self._entries}

    def direction_of(self, log):
        """Return `"max"` or `"min"`, or `None` if there is no such log."""
        for entry in self._entries or []:
            if entry.log == log:
                up = entry.metric._direction == "up"
                return "max" if up else "min"
        return None

    def build(self, outputs):
        """Match metrics with outputs, from the student's outputs.

        Raises:
            ValueError: if the metrics do not fit the outputs or their losses.
        """
        if self._entries is not None:
            return
        paths = _outputs.output_paths(outputs)
        names = _names_of(paths, self._objective.names)
        entries, taken = [], set()
        for given, weighted in zip(self._given, (False, True)):
            chosen = [given]
            if len(paths) > 1:
                chosen = _outputs.per_output(
                    given, paths, self._objective.names, "metrics"
                )
            for index, metrics in enumerate(chosen):
                for metric in tree.flatten(metrics):
                    if _is_ours(metric):
                        log = _log_name(metric, names[index], weighted, taken)
                        taken.add(log)
                        entries.append(_Entry(metric, index, weighted, log))
        self._entries = entries
        self._one_metric_per_entry()
        terms = self._objective.terms_by_output(outputs)
        for entry in entries:
            entry.metric.set_output_kind(*_meaning(terms[entry.index][1]))

    def _one_metric_per_entry(self):
        """Copy metrics that were given for several outputs at once."""
        seen = set()
        for entry in self._entries:
            if id(entry.metric) in seen:
                entry.metric = type(entry.metric).from_config(
                    entry.metric.get_config()
                )
            seen.add(id(entry.metric))

    def update_state(self, targets, outputs):
        """Update each metric with the output that it was given for.

        Args:
            targets: the `Targets` of the batch.
            outputs: the student's outputs.
        """
        if not self:
            return
        self.build(outputs)
        targets = targets.with_followed_weights()
        terms = self._objective.terms_by_output(outputs)
        for entry in self._entries:
            path, own = terms[entry.index]
            of_output = OutputTargets(
                targets,
                path,
                entry.index,
                self._objective.names,
                _outputs.at(outputs, path),
            )
            predicts, from_logits = _meaning(own)
            teacher = of_output.teacher(
                functools.partial(
                    _average.average,
                    predicts=predicts,
                    from_logits=from_logits is not False,
                )
            )
            weights = of_output.weights if entry.weighted else None
            entry.metric.update_state(dense(teacher), of_output.output, weights)


class _Entry:
    def __init__(self, metric, index, weighted, log):
        self.metric, self.index = metric, index
        self.weighted, self.log = weighted, log


def _is_ours(metric):
    return isinstance(metric, TeacherMetric)


def _names_of(paths, names):
    """Return the prefix of the metrics of each output."""
    if len(paths) == 1:
        return [""]
    if names is not None and len(names) == len(paths):
        return [f"{name}_" for name in names]
    return ["_".join(map(str, path)) + "_" for path in paths]


def _log_name(metric, output, weighted, taken):
    log = f"{output}{metric.name}"
    if log in taken and weighted:
        log = f"{output}weighted_{metric.name}"
    first, count = log, 1
    while log in taken:
        log = f"{first}_{count}"
        count += 1
    return log


def _meaning(terms):
    """Return `(predicts, from_logits)` of the losses of an output."""
    for term in terms:
        if term.compares_with_teacher and term.loss.predicts is not None:
            return term.loss.predicts, term.loss.from_logits
    return "classes", None


def without_teacher_metrics(metrics, num_outputs):
    """Return `metrics` for Keras: those that compare with labels.

    Args:
        metrics: as for `keras.Model.compile`.
        num_outputs: how many outputs the student has. A flat list means one
            metric per output if there are several, and keeps its places.
    """

    def strip(entry, keep_places):
        if isinstance(entry, dict):
            return {key: strip(value, False) for key, value in entry.items()}
        if isinstance(entry, (list, tuple)):
            kept = [strip(item, False) for item in entry]
            return kept if keep_places else [k for k in kept if k is not None]
        return None if _is_ours(entry) else entry

    kept = strip(metrics, num_outputs > 1)
    return kept if any(m is not None for m in tree.flatten(kept)) else None
