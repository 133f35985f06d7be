"""How close the student is to its teacher, on whatever view it is shown.

The metrics measure with the same functions that the losses train with.
"""

import keras
from keras import ops
from keras import tree

from keras_distill import _arguments
from keras_distill import _outputs
from keras_distill.losses import divergence


class TeacherMetric(keras.metrics.Mean):
    """Base of the metrics that compare with the teacher, not with labels.

    Subclasses implement `measure(teacher, student)`: one value per sample.
    """

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch.

        Args:
            y_true: the teacher's outputs `(..., classes)`, or a dict with them
                under `"teacher"`.
            y_pred: the student's outputs `(..., classes)`.
            sample_weight: optional weights, broadcastable to `(...)`.
        """
        teacher = y_true["teacher"] if isinstance(y_true, dict) else y_true
        values = self.measure(
            ops.convert_to_tensor(teacher), ops.convert_to_tensor(y_pred)
        )
        super().update_state(values, sample_weight)

    def measure(self, teacher, student):
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherAgreement(TeacherMetric):
    """Share of samples whose teacher's class is in the student's first `k`.

    Works on logits and on probabilities alike. 1 means that the student decides
    as the teacher does, right or wrong.

    Source: Stanton et al. 2021, "Does Knowledge Distillation Really Work?",
    https://arxiv.org/abs/2106.05945 (average top-1 agreement).

    Args:
        k: how many of the student's best classes count.
        name: name in the logs; `teacher_agreement` by default, with the prefix
            `top_k_` for `k` above 1.
        dtype: dtype of the state.

    Example:

    ```python
    import numpy as np
    from keras_distill import TeacherAgreement

    metric = TeacherAgreement()
    teacher = np.array([[3.0, 1.0], [0.0, 2.0]])
    student = np.array([[1.0, 0.0], [5.0, 4.0]])
    print(float(metric(teacher, student)))  # 0.5
    ```
    """

    def __init__(self, k=1, name=None, dtype=None):
        self.k = _arguments.positive_int("k", k)
        prefix = "" if self.k == 1 else f"top_{self.k}_"
        super().__init__(name=name or f"{prefix}teacher_agreement", dtype=dtype)

    def measure(self, teacher, student):
        decided = ops.cast(ops.argmax(teacher, axis=-1), "int32")
        if self.k == 1:
            # `in_top_k` counts ties as hits, and a student that answers the
            # same for every class would agree with everything.
            best = ops.cast(ops.argmax(student, axis=-1), "int32")
            return ops.cast(ops.equal(decided, best), "float32")
        _, best = ops.top_k(student, min(self.k, student.shape[-1]))
        hits = ops.equal(ops.expand_dims(decided, -1), ops.cast(best, "int32"))
        return ops.cast(ops.any(hits, axis=-1), "float32")

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype, "k": self.k}


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherDivergence(TeacherMetric):
    """Mean KL divergence from the teacher to the student, in nats.

    `KL(softmax(t) || softmax(s))` at temperature 1: 0 where the two models
    agree in every probability.

    Args:
        from_logits: bool. Whether both models return logits or probabilities.
        name: name in the logs.
        dtype: dtype of the state.

    Example:

    ```python
    import numpy as np
    from keras_distill import TeacherDivergence

    metric = TeacherDivergence()
    print(float(metric(np.array([[3.0, 1.0]]), np.array([[3.0, 1.0]]))))  # 0.0
    ```
    """

    def __init__(self, from_logits=True, name="teacher_divergence", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = bool(from_logits)

    def measure(self, teacher, student):
        return divergence.kl_divergence(
            divergence.as_logits(teacher, self.from_logits),
            divergence.as_logits(student, self.from_logits),
            1.0,
        )

    def get_config(self):
        return {
            "name": self.name,
            "dtype": self.dtype,
            "from_logits": self.from_logits,
        }


class TeacherMetrics:
    """The teacher metrics among the `metrics` and `weighted_metrics` given.

    Args:
        metrics, weighted_metrics: as for `keras.Model.compile`.
        names: names of the student's outputs, or `None`.
    """

    def __init__(self, metrics, weighted_metrics, names):
        self._given = ((metrics, False), (weighted_metrics, True))
        self._names = names

    @property
    def metrics(self):
        return [
            metric
            for given, _ in self._given
            for metric in tree.flatten(given)
            if isinstance(metric, TeacherMetric)
        ]

    def update_state(self, teacher, y_pred, sample_weight):
        """Update each metric with the output that it was given for."""
        if not self.metrics:
            return
        paths = _outputs.output_paths(y_pred)
        outputs = zip(tree.flatten(teacher), tree.flatten(y_pred), strict=True)
        chosen = [
            _outputs.per_output(given, paths, self._names, "metrics")
            for given, _ in self._given
        ]
        for index, (answer, output) in enumerate(outputs):
            for (_, weighted), metrics in zip(self._given, chosen):
                weight = None
                if weighted:
                    weight = _outputs.select(
                        sample_weight, paths[index], index, self._names
                    )
                for metric in tree.flatten(metrics[index]):
                    if isinstance(metric, TeacherMetric):
                        metric.update_state(answer, output, weight)


def without_teacher_metrics(metrics, num_outputs):
    """Return `metrics` as Keras gets them: those that look at labels.

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
        return None if isinstance(entry, TeacherMetric) else entry

    kept = strip(metrics, num_outputs > 1)
    return kept if any(m is not None for m in tree.flatten(kept)) else None
