"""ValueMatching: a distance to the teacher's outputs, which have no classes."""

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill.losses import _distance
from keras_distill.losses import _label_loss as label_losses
from keras_distill.losses._with_labels import WithLabels


@keras.saving.register_keras_serializable(package="keras_distill")
class ValueMatching(WithLabels):
    """A distance to the teacher's outputs as they are, weighed with labels.

    For outputs that mean values and not classes: regression, boxes, images,
    embeddings. With the teacher's outputs `t` and the student's `s`:

        loss = alpha * distance(t, s) + (1 - alpha) * label_loss(labels, s)

    The distance is a mean over the last axis. There is no softmax in it, hence
    no temperature.

    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?",
    https://arxiv.org/abs/1312.6184, with the squared distance; for regression
    weighed with labels, Saputra et al. 2019, "Distilling Knowledge From a Deep
    Pose Regressor Network", https://arxiv.org/abs/1908.00858.

    Args:
        distance: `"mse"`, `"mae"`, `"huber"`, `"cosine"` (1 - cos, from 0 to
            2), or any Keras loss, its name, or a function
            `(teacher, student) -> values per sample`.
        alpha: float from 0 (labels alone) to 1 (teacher alone), or a schedule.
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for the same distance.
        reduction: as in `keras.losses.Loss`; applies to both terms.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}`, or the teacher's
            outputs alone where `alpha=1`. Both have the shape of the student's
            outputs; of one value, the last axis of 1 may be missing. Losses for
            class indices, and functions of your own, may take other labels.
        y_pred: the student's outputs, `(batch,)` or `(..., units)`.
        sample_weight: optional weights, broadcastable to `(batch,)` or `(...)`.

    Raises:
        ValueError: if `alpha` is out of range, if labels are missing, if shapes
            differ, if `"cosine"` is asked of a single value, or if a
            cross-entropy does not say whether it takes logits.

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
        distance="mse",
        alpha=1.0,
        *,
        label_loss=None,
        reduction="sum_over_batch_size",
        name="value_matching",
        dtype="float32",
    ):
        self._distance = _distance.resolve(distance, "distance")
        if label_losses.is_sparse(distance):
            raise ValueError(
                "`distance` compares values, and the teacher returns no class "
                f"indices. Received: distance={label_losses.name_of(distance)}"
            )
        self.distance = distance
        super().__init__(label_loss, 1.0, True, reduction, name, dtype)
        self.alpha = _schedules.number_or_schedule(
            "alpha", alpha, _arguments.fraction
        )

    @property
    def label_distance(self):
        """What compares with the labels: `label_loss`, or `distance`."""
        return self.distance if self.label_loss is None else self.label_loss

    def resolved_label_loss(self):
        return _distance.resolve(self.label_distance, "label_loss")

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
            f"ValueMatching(alpha={self.alpha!r}) compares with labels, and "
            "the data has none. Pass `(x, y)`, or use `alpha=1`."
        )

    def labels_for(self, y_true, y_pred):
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
                "The cosine of a single value is only its sign. Received: "
                f"{label_losses.name_of(distance)!r} for outputs of shape "
                f"{shape}. Use 'mse', 'mae' or 'huber'."
            )

    def get_config(self):
        config = {
            **super().get_config(),
            "distance": label_losses.serialize(self.distance),
            "alpha": _schedules.serialize(self.alpha),
        }
        del config["temperature"], config["from_logits"]
        return config

    @classmethod
    def from_config(cls, config):
        distance = label_losses.deserialize(config["distance"])
        return super().from_config({**config, "distance": distance})
