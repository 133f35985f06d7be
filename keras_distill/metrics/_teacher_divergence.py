"""TeacherDivergence: the KL divergence from the teacher to the student."""

from typing import Any

import keras

from keras_distill._typing import Tensor
from keras_distill.losses import _binary
from keras_distill.losses import _divergence
from keras_distill.metrics._teacher_metric import TeacherMetric


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherDivergence(TeacherMetric):
    """Mean KL divergence from the teacher to the student, in nats.

    `KL(softmax(t) || softmax(s))` at temperature 1. It is 0 if the two models
    predict the same probabilities. For independent labels (`BinaryKD`), it is
    the mean over the labels of `KL(sigmoid(t) || sigmoid(s))`.

    Args:
        from_logits: bool or `None`. `True` if both models return logits,
            `False` if both return probabilities. `None` uses the `from_logits`
            of the loss in a `Distiller`, and means logits elsewhere.
        name: name in the logs.
        dtype: dtype of the state.

    Call arguments:
        y_true: the teacher's outputs `(..., classes)`, or a dict with them
            under `"teacher"`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if the shapes of the outputs differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import TeacherDivergence

    metric = TeacherDivergence()
    print(float(metric(np.array([[3.0, 1.0]]), np.array([[3.0, 1.0]]))))  # 0.0
    ```
    """

    _direction = "down"

    def __init__(
        self,
        from_logits: bool | None = None,
        name: str = "teacher_divergence",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = None if from_logits is None else bool(from_logits)

    @property
    def _reads_logits(self):
        if self.from_logits is None:
            return super()._reads_logits
        return self.from_logits

    def set_output_kind(self, predicts: str | None, from_logits: bool) -> None:
        super().set_output_kind(predicts, from_logits)
        if None not in (self.from_logits, from_logits):
            if self.from_logits != from_logits:
                raise ValueError(
                    "A metric must have the same `from_logits` as the loss of "
                    f"its output. Received: from_logits={from_logits} for the "
                    f"loss, and from_logits={self.from_logits} for the metric "
                    f"{self.name!r}. Remove the metric's `from_logits`: it is "
                    "taken from the loss."
                )

    def measure(self, teacher: Tensor, student: Tensor) -> Tensor:
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

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "from_logits": self.from_logits,
        }
