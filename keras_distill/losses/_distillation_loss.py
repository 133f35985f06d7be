"""DistillationLoss: the base of every loss that compares with a teacher.

Left out: a registry of losses by name. A loss has arguments that matter (the
temperature first of all), so it is always built explicitly.
"""

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._keras_internals import get_keras_mask
from keras_distill.losses import _correlation
from keras_distill.losses import _divergence
from keras_distill.losses import _shapes
from keras_distill.losses import _weighting


class DistillationLoss(_schedules.Controlled, keras.losses.Loss):
    """Base class of the losses that compare a student with its teacher.

    Subclass it to write a loss of your own: implement
    `call(self, y_true, y_pred)` and return one value per sample. Inside a
    `Distiller`, every loss of this class gets the teacher's outputs, and every
    other Keras loss gets the labels.

    Losses can be added and multiplied by a number or a schedule:
    `FunctionMatching(2.0) + 0.5 * DIST(label_weight=0)` is a loss.

    A subclass says in class attributes what it compares:

    - `predicts`: `"classes"` (a softmax over the last axis), `"labels"`
      (independent sigmoids), `"values"` (numbers of any meaning), or `None`.
      With one of the first two, models whose last activation contradicts the
      loss are refused. The outputs of several teachers are averaged as
      probabilities, or with `"values"` as they are. `None` checks nothing, and
      takes no list of teachers.
    - `controls`: names of the attributes that may be schedules.

    Args:
        temperature: float above 0 that divides the logits of both models, or a
            schedule.
        from_logits: bool. Whether the two models return logits or
            probabilities.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation. Defaults to float32 whatever the
            models' own policies: half precision loses the tail of a softmax.

    Call arguments:
        y_true: a dict with the teacher's outputs under `"teacher"`, the labels
            under `"labels"` (missing for unlabelled data), and under
            `"sample_weight"` the weights and the mask of each sample or place
            (missing where there are none). Or the teacher's outputs alone, of
            shape `(..., classes)`.
        y_pred: the student's outputs, of shape `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class LogitDistance(keras_distill.DistillationLoss):
        predicts = "classes"

        def call(self, y_true, y_pred):
            teacher, student = self.logits(y_true, y_pred)
            return keras.ops.mean(
                keras.ops.square(teacher - student), axis=-1
            )
    ```
    """

    predicts = None
    controls = ("temperature",)

    # The losses that offer it set it in their constructor.
    standardize_logits = False

    def __init__(
        self,
        temperature=1.0,
        *,
        from_logits=True,
        reduction="sum_over_batch_size",
        name=None,
        dtype="float32",
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = _schedules.number_or_schedule(
            "temperature", temperature, _arguments.positive_float
        )
        self.from_logits = bool(from_logits)

    def __call__(self, y_true, y_pred, sample_weight=None):
        if self.has_schedules:
            raise ValueError(
                f"{type(self).__name__} has schedules, and outside a Distiller "
                "it does not know the step. Received: "
                f"{', '.join(self.scheduled_values(0))}. Call "
                "`loss.at(step)(y_true, y_pred)`, or use numbers."
            )
        y_true = _with_weights(y_true, y_pred, sample_weight)
        # Part by part, as in a Distiller: a label loss with `ignore_class`
        # leaves out places of its own.
        return sum(
            weight
            * _weighting.weighted_value(
                function, self, y_true, y_pred, sample_weight
            )
            for weight, function in self.parts().values()
        )

    @property
    def uses_labels(self):
        """Whether `call` reads `y_true["labels"]`."""
        return True

    @property
    def uses_teacher(self):
        """Whether `call` reads `y_true["teacher"]`."""
        return True

    def parts(self):
        """Return the terms of this loss, as `{log name: (weight, function)}`.

        Each function maps `(y_true, y_pred)` to one value per sample. The
        `Distiller` logs the mean of each under its name.
        """
        return {"soft_loss": (1.0, self.call)}

    def outputs(self, y_true, y_pred):
        """Return `(teacher, student)` as they are, shape-checked.

        Args:
            y_true: as for calling the loss.
            y_pred: as for calling the loss.

        Raises:
            ValueError: if the shapes of the two outputs differ.
        """
        teacher = y_true["teacher"] if isinstance(y_true, dict) else y_true
        _shapes.check_comparable(self.predicts, teacher.shape, y_pred.shape)
        return _shapes.like(teacher, y_pred), y_pred

    def logits(self, y_true, y_pred):
        """Return `(teacher, student)` logits in float32, shape-checked.

        With `standardize_logits` they are z-scores over the classes.

        Args:
            y_true: as for calling the loss.
            y_pred: as for calling the loss.

        Raises:
            ValueError: if the shapes of the two outputs differ.
        """
        teacher, student = (
            _divergence.as_logits(outputs, self.from_logits)
            for outputs in self.outputs(y_true, y_pred)
        )
        if self.standardize_logits:
            return (
                _correlation.standardize(teacher),
                _correlation.standardize(student),
            )
        return teacher, student

    def __add__(self, other):
        return _combined([(1.0, self), (1.0, other)])

    def __radd__(self, other):
        if isinstance(other, int) and other == 0:
            return self  # `sum()` begins with 0.
        return _combined([(1.0, other), (1.0, self)])

    def __mul__(self, weight):
        return _combined([(weight, self)])

    __rmul__ = __mul__

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": _schedules.serialize(self.temperature),
            "from_logits": self.from_logits,
            # `keras.losses.Loss` leaves the dtype out of its config.
            "dtype": self.dtype,
        }

    @classmethod
    def from_config(cls, config):
        return cls(
            **{
                name: _schedules.deserialize(value)
                if name in cls.controls
                else value
                for name, value in config.items()
            }
        )


def _with_weights(y_true, y_pred, sample_weight):
    """Return the targets with the weights and the mask of each place."""
    places = tuple(y_pred.shape)[:-1] or tuple(y_pred.shape)
    weights = _weighting.per_place(
        sample_weight, get_keras_mask(y_pred), places
    )
    if weights is None:
        return y_true
    if not isinstance(y_true, dict):
        y_true = {"teacher": y_true}
    return {**y_true, "sample_weight": weights}


def _combined(terms):
    # Imported late: a sum of losses is itself a loss.
    from keras_distill.losses._combined_loss import CombinedLoss

    for _, loss in terms:
        if not isinstance(loss, keras.losses.Loss):
            return NotImplemented
    return CombinedLoss([loss for _, loss in terms], [w for w, _ in terms])
