"""DecoupledKD: the target class and the other classes, each with a weight."""

from collections.abc import Callable

import keras
from keras import ops

from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill.losses import _divergence
from keras_distill.losses._distillation_loss import Parts
from keras_distill.losses._label_loss import as_one_hot_or_sparse
from keras_distill.losses._with_labels import WithLabels
from keras_distill.losses._with_labels import term_weights


@keras.saving.register_keras_serializable(package="keras_distill")
class DecoupledKD(WithLabels):
    """The two parts of the KL divergence: target class and other classes.

    With `p = softmax(t / T)` of the teacher, `q = softmax(s / T)` of the
    student, the target class `k`, and `p'`, `q'` the softmax over the other
    classes:

        loss = label_weight * label_loss(labels, s)
             + T^2 * (target_weight * TCKD + non_target_weight * NCKD)
        TCKD = KL((p_k, 1 - p_k) || (q_k, 1 - q_k))
        NCKD = KL(p' || q')

    The divergence of `ClassicKD` is `TCKD + (1 - p_k) * NCKD`: a confident
    teacher gives the other classes a small weight. Here their weight does not
    depend on the teacher's confidence.

    With two classes there is only one other class, and `NCKD` is 0. Samples
    without a target class are left out: one-hot rows of zeros, and class
    indices out of range, such as -1 or 255.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation",
    https://arxiv.org/abs/2203.08679. The published code increases the weight
    of both parts from 0 during the first epochs (20 of 240 for CIFAR-100). For
    this, pass schedules as the weights.

    Args:
        target_weight: float of at least 0, or a schedule. The paper's alpha.
        non_target_weight: float of at least 0, or a schedule. The paper's beta.
            The published code uses 2 to 8 on CIFAR-100, and 0.5 or 2 on
            ImageNet with `temperature=1`.
        label_weight: float of at least 0, or a schedule.
        temperature: float above 0, or a schedule.
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for cross-entropy, sparse or one-hot by the labels' shape.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
        reduction: as in `keras.losses.Loss`; applies to all terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`. Labels are always
            required, because they contain the target class. They are class
            indices `(...)` or `(..., 1)`, or probabilities `(..., classes)`;
            the class with the largest probability is the target, also of mixed
            labels. The teacher's outputs are `(..., classes)`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if a weight or `temperature` is out of range, if all weights
            are 0, if labels are missing or of the wrong shape, or if the shapes
            of the outputs differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import DecoupledKD

    loss = DecoupledKD(non_target_weight=2.0, temperature=4.0)
    y_true = {"labels": np.array([0]), "teacher": np.array([[9.0, 4.0, 0.0]])}
    print(float(loss(y_true, np.array([[3.0, 2.0, 1.0]]))))
    ```
    """

    predicts = "classes"
    is_per_place = True
    controls = (
        "target_weight",
        "non_target_weight",
        "label_weight",
        "temperature",
    )

    def __init__(
        self,
        target_weight: float | Schedule = 1.0,
        non_target_weight: float | Schedule = 8.0,
        *,
        label_weight: float | Schedule = 1.0,
        temperature: float | Schedule = 4.0,
        label_loss: str | keras.losses.Loss | Callable | None = None,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "decoupled_kd",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(
            label_loss, temperature, from_logits, reduction, name, dtype
        )
        self.target_weight, self.non_target_weight, self.label_weight = (
            term_weights(
                "DecoupledKD",
                target_weight=target_weight,
                non_target_weight=non_target_weight,
                label_weight=label_weight,
            )
        )

    @property
    def uses_labels(self) -> bool:
        # The target class is read from them, also without a label loss.
        return True

    def all_parts(self) -> Parts:
        return {
            "target_loss": (self.target_weight, self._target_loss),
            "non_target_loss": (self.non_target_weight, self._non_target_loss),
            "label_loss": (self.label_weight, self.compare_with_labels),
        }

    def missing_labels_message(self) -> str:
        return (
            "DecoupledKD requires labels to know the target class, and the "
            "data has none. Pass `(x, y)`, or use `FunctionMatching()` or "
            "`DIST(label_weight=0)`."
        )

    def _target_loss(self, y_true, y_pred):
        return self.temperature**2 * self._split(y_true, y_pred)[0]

    def _non_target_loss(self, y_true, y_pred):
        return self.temperature**2 * self._split(y_true, y_pred)[1]

    def _split(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        target = _is_target(self.labels(y_true), student)
        has_target = ops.any(target, axis=-1)
        # Rows without a target get class 0 here, and are set to 0 below.
        first = ops.equal(ops.arange(student.shape[-1]), 0)
        target = ops.where(has_target[..., None], target, first)
        return [
            ops.where(has_target, values, 0.0)
            for values in _divergence.split_kl_divergence(
                teacher, student, target, self.temperature
            )
        ]

    def default_label_loss(self, labels: Tensor, y_pred: Tensor) -> Tensor:
        if as_one_hot_or_sparse(labels, y_pred.shape) == "sparse":
            has_target = ops.any(_is_target(labels, y_pred), axis=-1)
            labels = ops.reshape(labels, ops.shape(has_target))
            labels = ops.where(has_target, labels, 0)
            values = super().default_label_loss(labels, y_pred)
            return ops.where(has_target, values, 0.0)
        return super().default_label_loss(labels, y_pred)


def _is_target(labels, student):
    """Return bool `(..., classes)`, true at the target class, if any."""
    if as_one_hot_or_sparse(labels, student.shape) == "one-hot":
        indices = ops.argmax(labels, axis=-1)
        indices = ops.where(ops.max(labels, axis=-1) > 0, indices, -1)
    else:
        indices = ops.reshape(labels, ops.shape(student)[:-1])
    indices = ops.expand_dims(ops.cast(indices, "int32"), axis=-1)
    return ops.equal(indices, ops.arange(student.shape[-1], dtype="int32"))
