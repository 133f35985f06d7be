"""ClassicKD: soft targets from the teacher and hard labels, weighted."""

from collections.abc import Callable
from typing import Any

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._schedules import Schedule
from keras_distill.losses import _divergence
from keras_distill.losses._distillation_loss import Parts
from keras_distill.losses._with_labels import WithLabels


@keras.saving.register_keras_serializable(package="keras_distill")
class ClassicKD(WithLabels):
    """Soft targets with a temperature, and labels, weighted by `alpha`.

    With teacher logits `t` and student logits `s`:

        loss = alpha * T^2 * CE(softmax(t / T), softmax(s / T))
             + (1 - alpha) * label_loss(labels, s)

    `alpha` is the weight of the teacher. The factor `T^2` keeps the soft
    gradients at the size of the label gradients, so that `alpha` has the same
    effect at every temperature.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531. `standardize_logits`: Sun et al. 2024,
    "Logit Standardization in Knowledge Distillation",
    https://arxiv.org/abs/2403.01427.

    Args:
        alpha: float from 0 (labels alone) to 1 (teacher alone), or a schedule.
        temperature: float above 0, or a schedule. A higher temperature shows
            more of the probabilities that the teacher gives to wrong classes.
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for cross-entropy, sparse or one-hot by the labels' shape.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
        standardize_logits: bool. `True` compares z-scores: the logits of each
            model minus their mean over the classes, divided by their standard
            deviation. The student then does not have to match the range of the
            teacher's logits. The labels are still compared with the original
            logits.
        reduction: as in `keras.losses.Loss`; applies to both terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`. Labels are class
            indices `(...)` or `(..., 1)`, or probabilities `(..., classes)`;
            the teacher's outputs are `(..., classes)`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if `alpha` or `temperature` is out of range, if labels are
            missing or of the wrong shape, or if the shapes of the outputs
            differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import ClassicKD

    loss = ClassicKD(alpha=0.5, temperature=4.0)
    y_true = {"labels": np.array([0]), "teacher": np.array([[9.0, 4.0, 0.0]])}
    print(float(loss(y_true, np.array([[3.0, 2.0, 1.0]]))))
    ```
    """

    predicts = "classes"
    is_per_place = True
    controls = ("alpha", "temperature")

    def __init__(
        self,
        alpha: float | Schedule = 0.9,
        temperature: float | Schedule = 4.0,
        *,
        label_loss: str | keras.losses.Loss | Callable | None = None,
        from_logits: bool = True,
        standardize_logits: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "classic_kd",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(
            label_loss, temperature, from_logits, reduction, name, dtype
        )
        self.alpha = _schedules.number_or_schedule(
            "alpha", alpha, _arguments.fraction
        )
        self.standardize_logits = bool(standardize_logits)

    @property
    def reads_most_probable(self) -> bool:
        return not self.standardize_logits

    def all_parts(self) -> Parts:
        return {
            "soft_loss": (self.alpha, self._soft_loss),
            "label_loss": (
                _schedules.complement(self.alpha),
                self.compare_with_labels,
            ),
        }

    def missing_labels_message(self) -> str:
        return (
            f"ClassicKD(alpha={self.alpha!r}) compares with labels, and the "
            "data has none. Pass `(x, y)`, or use `alpha=1`, or use "
            "`FunctionMatching()`."
        )

    def _soft_loss(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        cross_entropies = _divergence.soft_cross_entropy(
            teacher, student, self.temperature
        )
        return self.temperature**2 * cross_entropies

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "standardize_logits": self.standardize_logits,
        }
