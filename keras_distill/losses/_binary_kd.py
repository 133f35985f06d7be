"""BinaryKD: independent sigmoids, softened, weighed with labels."""

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill.losses import _binary
from keras_distill.losses import _shapes
from keras_distill.losses._label_loss import is_for_softmax
from keras_distill.losses._label_loss import name_of
from keras_distill.losses._with_labels import WithLabels


@keras.saving.register_keras_serializable(package="keras_distill")
class BinaryKD(WithLabels):
    """Soft targets for sigmoids: one unit of two classes, or several labels.

    With teacher logits `t` and student logits `s`, for each label on its own:

        loss = alpha * T^2 * BCE(sigmoid(t / T), sigmoid(s / T))
             + (1 - alpha) * BCE(labels, sigmoid(s))

        BCE(p, q) = -p log q - (1 - p) log(1 - q)

    and then the mean over the labels, the last axis, as in
    `keras.losses.BinaryCrossentropy`. `ClassicKD` is for a softmax, where one
    class excludes the others. Here any number of labels may be right at once.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531, for a softmax; a sigmoid is a softmax over
    the two logits `s` and 0. So for one unit this is `ClassicKD` for the two
    units `(0, s)`.

    Args:
        alpha: float from 0 (labels alone) to 1 (teacher alone), or a schedule.
        temperature: float above 0, or a schedule. Defaults to 1: a sigmoid
            tells of each label already how sure the teacher is.
        label_loss: a Keras loss for the labels, its name, or `None` for binary
            cross-entropy.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
        reduction: as in `keras.losses.Loss`; applies to both terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`. Labels are 0, 1 or
            between, of the shape of the outputs; of one unit, the last axis of
            1 may be missing. The teacher's outputs have the student's shape.
        y_pred: the student's outputs: `(batch,)`, `(batch, 1)`, or
            `(..., labels)`.
        sample_weight: optional weights, broadcastable to `(batch,)` or
            `(...)`.

    Raises:
        ValueError: if `alpha` or `temperature` is out of range, if labels are
            missing or of the wrong shape, if the outputs' shapes differ, or if
            `label_loss` is one for a softmax.

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
        alpha=0.9,
        temperature=1.0,
        *,
        label_loss=None,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="binary_kd",
        dtype="float32",
    ):
        if label_loss is not None and is_for_softmax(label_loss):
            raise ValueError(
                "`label_loss` of BinaryKD compares each label on its own. "
                f"Received: label_loss={name_of(label_loss)}, for which one "
                "class excludes the others. Use "
                "'binary_crossentropy', or `ClassicKD` for a softmax."
            )
        super().__init__(
            label_loss, temperature, from_logits, reduction, name, dtype
        )
        self.alpha = _schedules.number_or_schedule(
            "alpha", alpha, _arguments.fraction
        )

    def all_parts(self):
        return {
            "soft_loss": (self.alpha, self._soft_loss),
            "label_loss": (
                _schedules.complement(self.alpha),
                self.compare_with_labels,
            ),
        }

    def missing_labels(self):
        return (
            f"BinaryKD(alpha={self.alpha!r}) compares with labels, and the "
            "data has none. Pass `(x, y)`, or use `alpha=1`."
        )

    def labels_for(self, y_true, y_pred):
        labels = super().labels_for(y_true, y_pred)
        if _shapes.fits(labels.shape, y_pred.shape):
            return _shapes.like(labels, y_pred)
        shape, target = tuple(labels.shape), tuple(y_pred.shape)
        raise ValueError(
            f"Labels of shape {shape} don't fit a student that returns "
            f"{target}. Each output is a label of its own: give 0 or 1 for "
            f"each, of shape {target}. Class indices become this with "
            "`keras.ops.one_hot`; for classes that exclude each other use "
            "`ClassicKD`."
        )

    def default_label_loss(self, labels, y_pred):
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

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": _schedules.serialize(self.alpha),
        }
