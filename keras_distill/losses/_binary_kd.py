"""BinaryKD: soft targets for independent sigmoids, weighted with labels."""

from collections.abc import Callable

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _binary
from keras_distill.losses import _shapes
from keras_distill.losses._distillation_loss import Parts
from keras_distill.losses._label_loss import is_for_softmax
from keras_distill.losses._label_loss import name_of
from keras_distill.losses._with_labels import WithLabels


@keras.saving.register_keras_serializable(package="keras_distill")
class BinaryKD(WithLabels):
    """Soft targets for sigmoids: binary or multi-label classification.

    With teacher logits `t` and student logits `s`, for each label separately:

        loss = alpha * T^2 * BCE(sigmoid(t / T), sigmoid(s / T))
             + (1 - alpha) * BCE(labels, sigmoid(s))

        BCE(p, q) = -p log q - (1 - p) log(1 - q)

    The loss of a sample is the mean over the labels, the last axis, as in
    `keras.losses.BinaryCrossentropy`. Use `ClassicKD` for a softmax, whose
    classes exclude each other. Here, any number of labels can be true at once.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531, for a softmax. A sigmoid is a softmax over
    the two logits `s` and 0, so for one unit this loss is `ClassicKD` for the
    two units `(0, s)`.

    Args:
        alpha: float from 0 (labels alone) to 1 (teacher alone), or a schedule.
        temperature: float above 0, or a schedule. Defaults to 1, because a
            sigmoid already shows how confident the teacher is in each label.
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for binary cross-entropy.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
        reduction: as in `keras.losses.Loss`; applies to both terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`. Labels are numbers
            from 0 to 1, of the shape of the outputs. For a single unit, the
            last axis of size 1 may be missing. The teacher's outputs have the
            shape of the student's.
        y_pred: the student's outputs: `(batch,)`, `(batch, 1)`, or
            `(..., labels)`.
        sample_weight: optional weights, broadcastable to `(batch,)` or
            `(...)`.

    Raises:
        ValueError: if `alpha` or `temperature` is out of range, if labels are
            missing or of the wrong shape, if the shapes of the outputs differ,
            or if `label_loss` is a loss for a softmax.

    Example:

    ```python
    import numpy as np
    from keras_distill import BinaryKD

    loss = BinaryKD(alpha=0.5, temperature=2.0)
    y_true = {
        "labels": np.array([[1, 0, 1]]),
        "teacher": np.array([[4.0, -6.0, 1.0]]),
    }
    print(float(loss(y_true, np.array([[2.0, -3.0, 0.0]]))))
    ```
    """

    predicts = "labels"
    controls = ("alpha", "temperature")

    def __init__(
        self,
        alpha: float | Schedule = 0.9,
        temperature: float | Schedule = 1.0,
        *,
        label_loss: str | keras.losses.Loss | Callable | None = None,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_kd",
        dtype: str | None = "float32",
    ) -> None:
        if label_loss is not None and is_for_softmax(label_loss):
            raise ValueError(
                "`label_loss` of BinaryKD must compare each label separately. "
                f"Received: label_loss={name_of(label_loss)}, a loss for "
                "classes that exclude each other. Use 'binary_crossentropy', "
                "or use `ClassicKD` for a softmax."
            )
        super().__init__(
            label_loss, temperature, from_logits, reduction, name, dtype
        )
        self.alpha = _schedules.number_or_schedule(
            "alpha", alpha, _arguments.fraction
        )

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
            f"BinaryKD(alpha={self.alpha!r}) compares with labels, and the "
            "data has none. Pass `(x, y)`, or use `alpha=1`."
        )

    def labels_for(self, y_true: Tensors, y_pred: Tensor) -> Tensor:
        labels = super().labels_for(y_true, y_pred)
        if _shapes.fits(labels.shape, y_pred.shape):
            return _shapes.like(labels, y_pred)
        shape, target = tuple(labels.shape), tuple(y_pred.shape)
        raise ValueError(
            "The labels must have the shape of the student's outputs. "
            f"Received: labels of shape {shape}, outputs of shape {target}. "
            "Pass 0 or 1 for each output. Convert class indices with "
            "`keras.ops.one_hot`. If the classes exclude each other, use "
            "`ClassicKD`."
        )

    def default_label_loss(self, labels: Tensor, y_pred: Tensor) -> Tensor:
        logits = _binary.as_logits(y_pred, self.from_logits)
        return _binary.mean_over_labels(_binary.cross_entropy(labels, logits))

    def _soft_loss(self, y_true, y_pred):
        teacher, student = (
            _binary.as_logits(outputs, self.from_logits)
            for outputs in self.outputs(y_true, y_pred)
        )
        cross_entropies = _binary.soft_cross_entropy(
            teacher, student, self.temperature
        )
        return self.temperature**2 * _binary.mean_over_labels(cross_entropies)
