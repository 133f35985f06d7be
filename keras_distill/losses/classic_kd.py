"""ClassicKD: soft targets from the teacher, weighed with labels."""

import keras

from keras_distill import _arguments
from keras_distill.losses import divergence
from keras_distill.losses.distillation_loss import DistillationLoss
from keras_distill.losses.distillation_loss import label_cross_entropy


@keras.saving.register_keras_serializable(package="keras_distill")
class ClassicKD(DistillationLoss):
    """Soft targets with a temperature; `alpha` is the weight of the teacher.

    With teacher logits `t` and student logits `s`:

        loss = alpha * T^2 * CE(softmax(t / T), softmax(s / T))
             + (1 - alpha) * label_loss(labels, s)

    The factor `T^2` keeps the soft gradients at the size of the label
    gradients, so that `alpha` means the same at every temperature.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531.

    Args:
        alpha: float from 0 (labels alone) to 1 (teacher alone).
        temperature: float above 0. Higher shows more of the teacher's order
            among the wrong classes.
        label_loss: a Keras loss for the labels, its name, or `None` for
            cross-entropy, sparse or one-hot by the labels' shape.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
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
            missing or of the wrong shape, or if the outputs' shapes differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import ClassicKD

    loss = ClassicKD(alpha=0.5, temperature=4.0)
    y_true = {"labels": np.array([0]), "teacher": np.array([[9.0, 4.0, 0.0]])}
    print(float(loss(y_true, np.array([[3.0, 2.0, 1.0]]))))
    ```
    """

    def __init__(
        self,
        alpha=0.9,
        temperature=4.0,
        label_loss=None,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="classic_kd",
        dtype="float32",
    ):
        super().__init__(temperature, from_logits, reduction, name, dtype)
        self.alpha = _arguments.fraction("alpha", alpha)
        self.label_loss = keras.losses.get(label_loss)

    def call(self, y_true, y_pred):
        return sum(
            weight * part(y_true, y_pred)
            for weight, part in self.parts().values()
        )

    @property
    def uses_labels(self):
        return self.alpha < 1

    def parts(self):
        # A part of no weight is not computed: alpha=1 needs no labels, and
        # alpha=0 is ordinary training even beside a broken teacher.
        parts = {
            "soft_loss": (self.alpha, self._soft_loss),
            "label_loss": (1.0 - self.alpha, self._label_loss),
        }
        return {name: part for name, part in parts.items() if part[0] > 0}

    def _soft_loss(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        cross_entropies = divergence.soft_cross_entropy(
            teacher, student, self.temperature
        )
        return self.temperature**2 * cross_entropies

    def _label_loss(self, y_true, y_pred):
        if not isinstance(y_true, dict) or y_true.get("labels") is None:
            raise ValueError(
                f"ClassicKD(alpha={self.alpha:g}) gives the labels a weight "
                f"of {1 - self.alpha:g}, and the data has no labels. Pass "
                "`(x, y)`, or use `alpha=1`, or use `FunctionMatching()`."
            )
        labels = y_true["labels"]
        if self.label_loss is None:
            logits = divergence.as_logits(y_pred, self.from_logits)
            return label_cross_entropy(labels, logits)
        if isinstance(self.label_loss, keras.losses.Loss):
            return self.label_loss.call(labels, y_pred)
        return self.label_loss(labels, y_pred)

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "label_loss": keras.losses.serialize(self.label_loss)
            if self.label_loss is not None
            else None,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("label_loss"), dict):
            config["label_loss"] = keras.losses.deserialize(
                config["label_loss"]
            )
        return cls(**config)
