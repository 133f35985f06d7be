"""TeacherMetric: the base class of metrics that compare with the teacher.

The metrics compute with the same functions as the losses.
"""

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _shapes
from keras_distill.losses import _weighting


class TeacherMetric(keras.metrics.MeanMetricWrapper):
    """Base class of metrics that compare with the teacher and not with labels.

    Subclasses implement `measure(teacher, student)` and return one value per
    sample or place. Weights and Keras masks are applied as in Keras's own
    metrics.

    Args:
        name: name in the logs.
        dtype: dtype of the state.
    """

    # Which direction is better: "up" or "down". Keras's callbacks read it.
    _direction = "up"

    def __init__(
        self, name: str | None = None, dtype: str | None = None
    ) -> None:
        super().__init__(self.measure, name=name, dtype=dtype)
        self._predicts: str | None = "classes"
        self._loss_from_logits: bool | None = None

    def set_output_kind(self, predicts: str | None, from_logits: bool) -> None:
        """Set the meaning of the outputs. The `Distiller` calls it.

        Args:
            predicts: `"classes"`, `"labels"` or `"values"`, as in
                `DistillationLoss`.
            from_logits: bool. Whether outputs are logits or probabilities.

        Raises:
            ValueError: if the metric does not support such outputs.
        """
        if predicts == "values":
            raise ValueError(
                f"{type(self).__name__} requires predictions of classes or "
                "labels, but the loss of this output compares values. Received:"
                f" {self.name!r}. Remove this metric; the log `soft_loss` is "
                "the distance to the teacher."
            )
        self._predicts, self._loss_from_logits = predicts, from_logits

    @property
    def _reads_logits(self):
        if self._loss_from_logits is None:
            return True
        return self._loss_from_logits

    def update_state(
        self,
        y_true: Tensors,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            y_true: the teacher's outputs `(..., classes)`, or a dict with them
                under `"teacher"`.
            y_pred: the student's outputs `(..., classes)`.
            sample_weight: optional weights, broadcastable to `(...)`.

        Raises:
            ValueError: if the shapes of the outputs differ, or if the shape of
                the weights does not match.
        """
        teacher = y_true["teacher"] if isinstance(y_true, dict) else y_true
        teacher = ops.convert_to_tensor(teacher)
        y_pred = ops.convert_to_tensor(y_pred)
        check = _shapes.check_same_shape
        if self._predicts == "classes":
            check = _shapes.check_same_classes
        check(teacher.shape, y_pred.shape)
        if sample_weight is not None:
            values = y_pred[..., 0] if len(y_pred.shape) > 1 else y_pred
            sample_weight = _weighting.filled(
                _weighting.aligned(sample_weight, values.shape), values
            )
        super().update_state(teacher, y_pred, sample_weight)

    def measure(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return one value per sample or place.

        Args:
            teacher: the teacher's outputs `(..., classes)`.
            student: the student's outputs `(..., classes)`.
        """
        raise NotImplementedError
