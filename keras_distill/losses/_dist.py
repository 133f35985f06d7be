"""DIST: the correlation of the predictions with the teacher's."""

from collections.abc import Callable

import keras
from keras import ops

from keras_distill._schedules import Schedule
from keras_distill.losses import _correlation
from keras_distill.losses._distillation_loss import Parts
from keras_distill.losses._with_labels import WithLabels
from keras_distill.losses._with_labels import term_weights


@keras.saving.register_keras_serializable(package="keras_distill")
class DIST(WithLabels):
    """Correlation with the teacher, for teachers much stronger than students.

    With the probabilities `p = softmax(t / T)` of the teacher and
    `q = softmax(s / T)` of the student, and the Pearson correlation `r`:

        loss = label_weight * label_loss(labels, s)
             + T^2 * (inter_weight * inter + intra_weight * intra)
        inter = 1 - r(p, q) over the classes, for each sample
        intra = 1 - r(p, q) over the batch, for each class, then the mean

    The student learns the order and the relative distances of the teacher's
    probabilities, but not their exact values: a small student cannot be as
    confident as a very strong teacher. The intra term compares the samples of a
    batch with each other, so it requires batches of more than a few samples.

    The correlation of constant values is not defined (a single sample, or a
    last layer of zeros). If the values of both models are constant, the term is
    0; if those of one model are constant, it is 1/2.

    The intra term is one number for the batch, and each sample gets it. Samples
    count in it by their weight, so padding does not count. On several devices,
    each device correlates its own part of the batch, except on JAX, which
    correlates the whole batch. In outputs of more than two dimensions, such as
    masks, all leading dimensions together are the batch.

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher",
    https://arxiv.org/abs/2205.10536.

    Args:
        inter_weight: float of at least 0, or a schedule.
        intra_weight: float of at least 0, or a schedule.
        label_weight: float of at least 0, or a schedule. With 0, no labels are
            required.
        temperature: float above 0, or a schedule.
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for cross-entropy, sparse or one-hot by the labels' shape.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
        reduction: as in `keras.losses.Loss`; applies to all terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`. Labels are class
            indices `(...)` or `(..., 1)`, or probabilities `(..., classes)`;
            the teacher's outputs are `(..., classes)`.
        y_pred: the student's outputs `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if a weight or `temperature` is out of range, if all weights
            are 0, if labels are missing or of the wrong shape, or if the shapes
            of the outputs differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import DIST

    loss = DIST(label_weight=0.0)
    teacher = np.array([[9.0, 4.0, 0.0], [0.0, 2.0, 1.0]])
    print(float(loss({"teacher": teacher}, teacher + 5.0)))  # 0.0
    ```
    """

    predicts = "classes"
    controls = (
        "inter_weight",
        "intra_weight",
        "label_weight",
        "temperature",
    )

    def __init__(
        self,
        inter_weight: float | Schedule = 1.0,
        intra_weight: float | Schedule = 1.0,
        *,
        label_weight: float | Schedule = 1.0,
        temperature: float | Schedule = 1.0,
        label_loss: str | keras.losses.Loss | Callable | None = None,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "dist",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(
            label_loss, temperature, from_logits, reduction, name, dtype
        )
        self.inter_weight, self.intra_weight, self.label_weight = term_weights(
            "DIST",
            inter_weight=inter_weight,
            intra_weight=intra_weight,
            label_weight=label_weight,
        )

    def all_parts(self) -> Parts:
        return {
            "inter_loss": (self.inter_weight, self._inter_loss),
            "intra_loss": (self.intra_weight, self._intra_loss),
            "label_loss": (self.label_weight, self.compare_with_labels),
        }

    def missing_labels_message(self) -> str:
        return (
            f"DIST(label_weight={self.label_weight}) compares with labels, "
            "and the data has none. Pass `(x, y)`, or use `label_weight=0`."
        )

    def _inter_loss(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        return self.temperature**2 * _correlation.inter_class_distance(
            teacher, student, self.temperature
        )

    def _intra_loss(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        distance = _correlation.intra_class_distance(
            teacher, student, self.temperature, _weights_of(y_true)
        )
        return ops.broadcast_to(
            self.temperature**2 * distance, ops.shape(student)[:-1]
        )


def _weights_of(y_true):
    return y_true.get("sample_weight") if isinstance(y_true, dict) else None
