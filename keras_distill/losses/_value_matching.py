"""ValueMatching: a distance to the teacher's outputs, for regression."""

from collections.abc import Callable
from typing import Any
from typing import Self

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _distance
from keras_distill.losses import _label_loss as label_losses
from keras_distill.losses._distillation_loss import Parts
from keras_distill.losses._with_labels import WithLabels


@keras.saving.register_keras_serializable(package="keras_distill")
class ValueMatching(WithLabels):
    """A distance to the teacher's outputs, weighted with labels.

    For outputs that are values and not classes: regression, boxes, images,
    embeddings. With the teacher's outputs `t` and the student's outputs `s`:

        loss = alpha * distance(t, s) + (1 - alpha) * label_loss(labels, s)

    The distance is a mean over the last axis. There is no temperature, because
    there is no softmax.

    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?",
    https://arxiv.org/abs/1312.6184, with the squared distance. For regression
    weighted with labels, Saputra et al. 2019, "Distilling Knowledge From a Deep
    Pose Regressor Network", https://arxiv.org/abs/1908.00858.

    Args:
        distance: `"mse"`, `"mae"`, `"huber"`, `"cosine"` (1 - cos, from 0 to
            2), any other Keras loss or its name, or a function
            `(teacher, student) -> values per sample`.
        alpha: float from 0 (labels alone) to 1 (teacher alone), or a schedule.
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for `distance`.
        reduction: as in `keras.losses.Loss`; applies to both terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`, or with `alpha=1`
            the teacher's outputs alone. Both have the shape of the student's
            outputs. For a single value, the last axis of size 1 may be missing.
            Labels may have another shape if `label_loss` is a loss for class
            indices or a custom function.
        y_pred: the student's outputs, `(batch,)` or `(..., units)`.
        sample_weight: optional weights, broadcastable to `(batch,)` or `(...)`.

    Raises:
        ValueError: if `alpha` is out of range, if labels are missing, if shapes
            differ, if `"cosine"` is used for a single value, or if it is
            unknown whether a cross-entropy takes logits.

    Example:

    ```python
    import numpy as np
    from keras_distill import ValueMatching

    loss = ValueMatching("mae", alpha=0.5)
    y_true = {"labels": np.array([2.0]), "teacher": np.array([[1.8]])}
    print(float(loss(y_true, np.array([[1.0]]))))  # 0.5 * 0.8 + 0.5 * 1.0
    ```
    """

    predicts = "values"
    controls = ("alpha",)
    fixed = ("label_loss", "distance")

    def __init__(
        self,
        distance: str | keras.losses.Loss | Callable = "mse",
        alpha: float | Schedule = 1.0,
        *,
        label_loss: str | keras.losses.Loss | Callable | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "value_matching",
        dtype: str | None = "float32",
    ) -> None:
        self._distance = _distance.resolve(distance, "distance")
        if label_losses.is_sparse(distance):
            raise ValueError(
                "`distance` must compare values. Received: "
                f"distance={label_losses.name_of(distance)}, which compares "
                "with class indices. Use it as `label_loss`."
            )
        self.distance = distance
        super().__init__(label_loss, 1.0, True, reduction, name, dtype)
        self.alpha = _schedules.number_or_schedule(
            "alpha", alpha, _arguments.fraction
        )

    @property
    def label_distance(self) -> str | keras.losses.Loss | Callable:
        """The loss that compares with the labels."""
        return self.distance if self.label_loss is None else self.label_loss

    def resolved_label_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return _distance.resolve(self.label_distance, "label_loss")

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
            f"ValueMatching(alpha={self.alpha!r}) compares with labels, and "
            "the data has none. Pass `(x, y)`, or use `alpha=1`."
        )

    def labels_for(self, y_true: Tensors, y_pred: Tensor) -> Tensor:
        self._check_width(self.label_distance, y_pred)
        return _distance.labels_like(
            self.labels(y_true), y_pred, self.label_distance
        )

    def _soft_loss(self, y_true, y_pred):
        self._check_width(self.distance, y_pred)
        teacher, student = self.outputs(y_true, y_pred)
        return label_losses.per_place(self._distance, teacher, student)

    def _check_width(self, distance, y_pred):
        shape = tuple(y_pred.shape)
        if _distance.is_cosine(distance) and (
            len(shape) == 1 or shape[-1] == 1
        ):
            raise ValueError(
                "The cosine distance requires outputs of more than one value. "
                f"Received: {label_losses.name_of(distance)!r} for outputs of "
                f"shape {shape}. Use 'mse', 'mae' or 'huber'."
            )

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "distance": label_losses.serialize(self.distance),
        }
        del config["temperature"], config["from_logits"]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        distance = label_losses.deserialize(config["distance"])
        return super().from_config({**config, "distance": distance})
