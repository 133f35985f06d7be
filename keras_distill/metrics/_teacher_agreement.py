"""TeacherAgreement: how often the student predicts the teacher's class."""

from typing import Any

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill._typing import Tensor
from keras_distill.losses import _binary
from keras_distill.metrics._teacher_metric import TeacherMetric


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherAgreement(TeacherMetric):
    """Fraction of samples whose teacher class is in the student's top `k`.

    The outputs may be logits or probabilities. A value of 1 means that student
    and teacher always predict the same class, which may be right or wrong. For
    independent labels (`BinaryKD`), it is the fraction of labels on which both
    decide the same.

    Source: Stanton et al. 2021, "Does Knowledge Distillation Really Work?",
    https://arxiv.org/abs/2106.05945 (average top-1 agreement).

    Args:
        k: int above 0, the number of the student's classes with the highest
            probability that are compared with the teacher's class.
        name: name in the logs. Defaults to `teacher_agreement`, with the prefix
            `top_k_` for `k` above 1.
        dtype: dtype of the state.

    Call arguments:
        y_true: the teacher's outputs `(..., classes)`, or a dict with them
            under `"teacher"`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if `k` is not a whole number above 0, or if the shapes of
            the outputs differ.

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

    def __init__(
        self, k: int = 1, name: str | None = None, dtype: str | None = None
    ) -> None:
        self.k = _arguments.positive_int("k", k)
        prefix = "" if self.k == 1 else f"top_{self.k}_"
        super().__init__(name=name or f"{prefix}teacher_agreement", dtype=dtype)

    def measure(self, teacher: Tensor, student: Tensor) -> Tensor:
        if self._predicts == "labels":
            return self._label_agreement(teacher, student)
        predicted = ops.cast(ops.argmax(teacher, axis=-1), "int32")
        if self.k == 1:
            # Not `in_top_k`, which counts ties as hits: a student with equal
            # outputs for all classes would agree with everything.
            best = ops.cast(ops.argmax(student, axis=-1), "int32")
            return ops.cast(ops.equal(predicted, best), "float32")
        _, best = ops.top_k(student, min(self.k, student.shape[-1]))
        hits = ops.equal(
            ops.expand_dims(predicted, -1), ops.cast(best, "int32")
        )
        return ops.cast(ops.any(hits, axis=-1), "float32")

    def _label_agreement(self, teacher, student):
        """Return the fraction of labels on which both decide the same."""
        if self.k > 1:
            raise ValueError(
                "`k` above 1 requires classes that exclude each other, but "
                "this output predicts independent labels. Received: "
                f"k={self.k}. Use `TeacherAgreement()`."
            )
        threshold = 0.0 if self._reads_logits else 0.5
        agree = ops.equal(teacher > threshold, student > threshold)
        return _binary.mean_over_labels(ops.cast(agree, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "k": self.k}
