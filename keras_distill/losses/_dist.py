"""DIST: predictions that rise and fall with the teacher's."""

import keras
from keras import ops

from keras_distill import _schedules
from keras_distill.losses import _correlation
from keras_distill.losses._with_labels import WithLabels
from keras_distill.losses._with_labels import check_any_weight
from keras_distill.losses._with_labels import non_negative


@keras.saving.register_keras_serializable(package="keras_distill")
class DIST(WithLabels):
    """Correlation with the teacher, for a much stronger one than the student.

    With the probabilities `p = softmax(t / T)` of the teacher and
    `q = softmax(s / T)` of the student, and the Pearson correlation `r`:

        loss = label_weight * label_loss(labels, s)
             + T^2 * (inter_weight * inter + intra_weight * intra)
        inter = 1 - r(p, q) over the classes, for each sample
        intra = 1 - r(p, q) over the batch, for each class, then the mean

    The student has to order and space its probabilities as the teacher does,
    and need not equal them: a small student can't be as sure as a very strong
    teacher. The intra term compares the samples of a batch with each other, so
    it wants batches of more than a few samples.

    Where values are constant (one sample alone, or a last layer of zeros), the
    correlation is not defined. Two constants then count as equal, with a term
    of 0, and one constant gives 1/2.

    The intra term is one number for the batch, and every sample gets it. The
    samples count in it by their weight, so that padding does not. On several
    devices, each correlates within its own share of the batch, except on JAX,
    where the batch stays one. In outputs of more than two dimensions, such as
    masks, all leading dimensions together are the batch.

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher",
    https://arxiv.org/abs/2205.10536.

    Args:
        inter_weight: float of at least 0.
        intra_weight: float of at least 0.
        label_weight: float of at least 0. With 0 no labels are needed.
        temperature: float above 0.
        label_loss: a Keras loss for the labels, its name, or `None` for
            cross-entropy, sparse or one-hot by the labels' shape.
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
            are 0, if labels are missing or of the wrong shape, or if the
            outputs' shapes differ.

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
        inter_weight=1.0,
        intra_weight=1.0,
        *,
        label_weight=1.0,
        temperature=1.0,
        label_loss=None,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="dist",
        dtype="float32",
    ):
        super().__init__(
            label_loss, temperature, from_logits, reduction, name, dtype
        )
        self.inter_weight = non_negative("inter_weight", inter_weight)
        self.intra_weight = non_negative("intra_weight", intra_weight)
        self.label_weight = non_negative("label_weight", label_weight)
        check_any_weight(
            "DIST",
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            label_weight=self.label_weight,
        )

    def all_parts(self):
        return {
            "inter_loss": (self.inter_weight, self._inter_loss),
            "intra_loss": (self.intra_weight, self._intra_loss),
            "label_loss": (self.label_weight, self.compare_with_labels),
        }

    def missing_labels(self):
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

    def get_config(self):
        return {
            **super().get_config(),
            "inter_weight": _schedules.serialize(self.inter_weight),
            "intra_weight": _schedules.serialize(self.intra_weight),
            "label_weight": _schedules.serialize(self.label_weight),
        }


def _weights_of(y_true):
    return y_true.get("sample_weight") if isinstance(y_true, dict) else None
