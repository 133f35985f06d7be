"""FunctionMatching: match the teacher's function, without labels."""

from typing import Any

import keras

from keras_distill import _arguments
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _divergence as divergences
from keras_distill.losses._distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class FunctionMatching(DistillationLoss):
    """A divergence between teacher and student, without labels.

    With `p = softmax(t / T)` of the teacher's logits `t` and
    `q = softmax(s / T)` of the student's logits `s`, `divergence` is one of

        forward          loss = T^2 * KL(p || q)
        reverse          loss = T^2 * KL(q || p)
        jensen_shannon   loss = T^2 * (beta KL(p || m) + (1 - beta) KL(q || m))
                         with m = beta p + (1 - beta) q

    With `"forward"`, the student learns to give probability to all classes that
    are likely for the teacher. With `"reverse"`, it learns to give probability
    only to such classes. `"jensen_shannon"` lies between them: divided by
    `beta`, it tends to the forward divergence as `beta` goes to 0; divided by
    `1 - beta`, it tends to the reverse divergence as `beta` goes to 1.

    The factor `T^2` keeps the size of the gradients independent of the
    temperature. The loss is zero exactly if the two models agree. The published
    recipe adds three things outside the loss: both models get the same crop,
    MixUp is aggressive, and training is long.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is
    patient and consistent", https://arxiv.org/abs/2106.05237.
    `divergence` and `beta`: Agarwal et al. 2024, "On-Policy Distillation of
    Language Models", https://arxiv.org/abs/2306.13649; for the reverse
    divergence also Gu et al. 2024, "MiniLLM", https://arxiv.org/abs/2306.08543.
    `standardize_logits`: Sun et al. 2024, "Logit Standardization in Knowledge
    Distillation", https://arxiv.org/abs/2403.01427.

    Args:
        temperature: float above 0, or a schedule. Defaults to 1, as in the
            paper.
        divergence: `"forward"`, `"reverse"` or `"jensen_shannon"`.
        beta: float between 0 and 1, the share of the teacher in the mixture of
            `"jensen_shannon"`. With 0.5, this divergence is symmetric.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities (the loss then uses their logarithms).
        standardize_logits: bool. `True` compares z-scores: the logits of each
            model minus their mean over the classes, divided by their standard
            deviation. The student then does not have to match the range of the
            teacher's logits.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the teacher's outputs `(..., classes)`, or a dict with them
            under `"teacher"`. With teacher outputs as the targets,
            `student.compile(loss=FunctionMatching())` trains without a
            `Distiller`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if the temperature is not above 0, if `beta` is not between
            0 and 1, if the divergence is unknown, or if the shapes differ.

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
    is_per_place = True

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        divergence: str = "forward",
        beta: float = 0.5,
        from_logits: bool = True,
        standardize_logits: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "function_matching",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if divergence not in ("forward", "reverse", "jensen_shannon"):
            raise ValueError(
                "`divergence` must be 'forward', 'reverse' or "
                f"'jensen_shannon'. Received: divergence={divergence!r}"
            )
        self.divergence = divergence
        self.beta = _arguments.open_fraction("beta", beta)
        self.standardize_logits = bool(standardize_logits)

    @property
    def reads_most_probable(self) -> bool:
        # The reverse divergence with a teacher that gives a class no more than
        # its part of the rest depends on how the rest is divided.
        return self.divergence != "reverse" and not self.standardize_logits

    @property
    def uses_labels(self) -> bool:
        return False

    def call(self, y_true: Tensors, y_pred: Tensor) -> Tensor:
        teacher, student = self.logits(y_true, y_pred)
        if self.divergence == "forward":
            values = divergences.kl_divergence(
                teacher, student, self.temperature
            )
        elif self.divergence == "reverse":
            values = divergences.reverse_kl_divergence(
                teacher, student, self.temperature
            )
        else:
            values = divergences.jensen_shannon_divergence(
                teacher, student, self.temperature, self.beta
            )
        return self.temperature**2 * values

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "divergence": self.divergence,
            "beta": self.beta,
            "standardize_logits": self.standardize_logits,
        }
