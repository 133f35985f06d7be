"""How close the student is to its teacher, on whatever view it is shown.

The metrics measure with the same functions that the losses train with.
"""

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.losses import _binary
from keras_distill.losses import _divergence
from keras_distill.losses import _shapes
from keras_distill.losses import _weighting


class TeacherMetric(keras.metrics.MeanMetricWrapper):
    """Base of the metrics that compare with the teacher, not with labels.

    Subclasses implement `measure(teacher, student)`: one value per sample or
    place. Weights and Keras masks count as in Keras's own metrics.
    """

    # Which direction is better: "up" or "down". Keras's callbacks ask for it.
    _direction = "up"

    def __init__(self, name=None, dtype=None):
        super().__init__(self.measure, name=name, dtype=dtype)
        self._predicts, self._loss_from_logits = "classes", None

    def follow(self, predicts, from_logits):
        """Read outputs as a loss does; the `Distiller` calls it.

        Args:
            predicts: `"classes"`, `"labels"` or `"values"`, as in
                `DistillationLoss`.
            from_logits: bool. Whether outputs are logits or probabilities.

        Raises:
            ValueError: if such outputs can't be measured.
        """
        if predicts == "values":
            raise ValueError(
                f"{type(self).__name__} measures predictions of classes or "
                "labels, and the loss of this output compares values. Received:"
                f" {self.name!r}. Leave it out; the log of the loss, "
                "`soft_loss`, is the distance to the teacher."
            )
        self._predicts, self._loss_from_logits = predicts, from_logits

    @property
    def _reads_logits(self):
        if self._loss_from_logits is None:
            return True
        return self._loss_from_logits

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch.

        Args:
            y_true: the teacher's outputs `(..., classes)`, or a dict with them
                under `"teacher"`.
            y_pred: the student's outputs `(..., classes)`.
            sample_weight: optional weights, broadcastable to `(...)`.
        """
        teacher = y_true["teacher"] if isinstance(y_true, dict) else y_true
        teacher = ops.convert_to_tensor(teacher)
        y_pred = ops.convert_to_tensor(y_pred)
        check = _shapes.check_same_shape
        if self._predicts == "classes":
            check = _shapes.check_same_classes
        check(teacher.shape, y_pred.shape)
        if sample_weight is not None:
            values = y_pred[..., 0] if len(y_pred.shape) > 1 else y_pred
            sample_weight = _weighting.filled(
                _weighting.aligned(sample_weight, values.shape), values
            )
        super().update_state(teacher, y_pred, sample_weight)

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
        if self._predicts == "labels":
            return self._labels_agree(teacher, student)
        decided = ops.cast(ops.argmax(teacher, axis=-1), "int32")
        if self.k == 1:
            # `in_top_k` counts ties as hits, and a student that answers the
            # same for every class would agree with everything.
            best = ops.cast(ops.argmax(student, axis=-1), "int32")
            return ops.cast(ops.equal(decided, best), "float32")
        _, best = ops.top_k(student, min(self.k, student.shape[-1]))
        hits = ops.equal(ops.expand_dims(decided, -1), ops.cast(best, "int32"))
        return ops.cast(ops.any(hits, axis=-1), "float32")

    def _labels_agree(self, teacher, student):
        """Return the share of labels on which both decide alike."""
        if self.k > 1:
            raise ValueError(
                "`k` counts classes, and this output predicts independent "
                f"labels. Received: k={self.k}. Use `TeacherAgreement()`."
            )
        threshold = 0.0 if self._reads_logits else 0.5
        agree = ops.equal(teacher > threshold, student > threshold)
        return _binary.mean_over_labels(ops.cast(agree, "float32"))

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype, "k": self.k}


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherDivergence(TeacherMetric):
    """Mean KL divergence from the teacher to the student, in nats.

    `KL(softmax(t) || softmax(s))` at temperature 1: 0 where the two models
    agree in every probability. Where the loss of an output compares independent
    labels (`BinaryKD`), it is the mean over the labels of
    `KL(sigmoid(t) || sigmoid(s))`.

    Args:
        from_logits: bool. Whether both models return logits or probabilities.
            `None` takes it from the loss of the output in a `Distiller`, and
            means logits elsewhere.
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

    _direction = "down"

    def __init__(self, from_logits=None, name="teacher_divergence", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = None if from_logits is None else bool(from_logits)

    @property
    def _reads_logits(self):
        if self.from_logits is None:
            return super()._reads_logits
        return self.from_logits

    def follow(self, predicts, from_logits):
        super().follow(predicts, from_logits)
        if None not in (self.from_logits, from_logits):
            if self.from_logits != from_logits:
                raise ValueError(
                    f"The loss of an output has from_logits={from_logits}, and "
                    f"its metric {self.name!r} from_logits={self.from_logits}. "
                    "Leave out the metric's `from_logits`: it follows the loss."
                )

    def measure(self, teacher, student):
        if self._predicts == "labels":
            teacher, student = (
                _binary.as_logits(outputs, self._reads_logits)
                for outputs in (teacher, student)
            )
            return _binary.mean_over_labels(
                _binary.kl_divergence(teacher, student)
            )
        return _divergence.kl_divergence(
            _divergence.as_logits(teacher, self._reads_logits),
            _divergence.as_logits(student, self._reads_logits),
            1.0,
        )

    def get_config(self):
        return {
            "name": self.name,
            "dtype": self.dtype,
            "from_logits": self.from_logits,
        }
