"""FunctionMatching: be the same function as the teacher, labels aside."""

import keras

from keras_distill.losses import divergence
from keras_distill.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class FunctionMatching(DistillationLoss):
    """KL divergence from the teacher to the student; uses no labels.

    With teacher logits `t` and student logits `s`:

        loss = T^2 * KL(softmax(t / T) || softmax(s / T))

    The factor `T^2` keeps the size of the gradients independent of the
    temperature. The loss is zero exactly where the two models agree. The recipe
    that made it known adds three things that live outside the loss: both
    models see the same crop, MixUp is aggressive, and training is long.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is
    patient and consistent", https://arxiv.org/abs/2106.05237.
    `standardize_logits`: Sun et al. 2024, "Logit Standardization in Knowledge
    Distillation", https://arxiv.org/abs/2403.01427.

    Args:
        temperature: float above 0. Defaults to 1, as in the paper.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities (the loss then works on their logarithms).
        standardize_logits: bool. `True` compares z-scores: the logits of each
            model less their mean over the classes, divided by their standard
            deviation. The student then need not reach the teacher's range.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the teacher's outputs `(..., classes)`, or a dict with them
            under `"teacher"`. So `student.compile(loss=FunctionMatching())`
            trains on stored teacher outputs without a `Distiller`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if the temperature is not above 0, or the shapes differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import FunctionMatching

    teacher = np.array([[2.0, 1.0, 0.0]])
    loss = FunctionMatching(temperature=2.0)
    print(float(loss(teacher, teacher)))  # 0.0
    ```
    """

    predicts = "classes"

    def __init__(
        self,
        temperature=1.0,
        *,
        from_logits=True,
        standardize_logits=False,
        reduction="sum_over_batch_size",
        name="function_matching",
        dtype="float32",
    ):
        super().__init__(temperature, from_logits, reduction, name, dtype)
        self.standardize_logits = bool(standardize_logits)

    @property
    def uses_labels(self):
        return False

    def call(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        divergences = divergence.kl_divergence(
            teacher, student, self.temperature
        )
        return self.temperature**2 * divergences

    def get_config(self):
        return {
            **super().get_config(),
            "standardize_logits": self.standardize_logits,
        }
