"""DistillationLoss: the base class of all losses that compare with a teacher.

There is no lookup of losses by name, such as `loss="classic_kd"`. A loss has
arguments that matter, first of all the temperature, so it is always constructed
explicitly.
"""

from collections.abc import Callable
from typing import Any
from typing import Self
from typing import TypeAlias

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._keras_internals import get_keras_mask
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _correlation
from keras_distill.losses import _divergence
from keras_distill.losses import _most_probable
from keras_distill.losses import _shapes
from keras_distill.losses import _weighting

# The terms of a loss, by their log names: `(weight, function)`. A function maps
# `(y_true, y_pred)` to one value per sample or place.
Parts: TypeAlias = dict[str, tuple[Any, Callable[[Tensors, Tensor], Tensor]]]


class DistillationLoss(_schedules.Controlled, keras.losses.Loss):
    """Base class of the losses that compare a student with its teacher.

    Subclass it to write a custom loss: implement `call(self, y_true, y_pred)`
    and return one value per sample. Inside a `Distiller`, every loss of this
    class gets the teacher's outputs, and every other Keras loss gets the
    labels.

    Losses can be added, and multiplied by a number or a schedule:
    `FunctionMatching(2.0) + 0.5 * DIST(label_weight=0)` is a loss.

    A subclass defines these class attributes:

    - `predicts`: the meaning of the outputs. `"classes"` is a softmax over the
      last axis, `"labels"` independent sigmoids, and `"values"` any numbers.
      With `"classes"` or `"labels"`, a model whose last activation contradicts
      the loss is refused. The outputs of several teachers are averaged as
      probabilities, or unchanged with `"values"`. With `None`, nothing is
      checked, and a list of teachers is refused.
    - `is_per_place`: whether the value at a place (sample, token or pixel)
      depends on the outputs at this place only. `tokens_per_chunk` of a
      `Distiller` requires it.
    - `controls`: names of the attributes that may be schedules. They are
      arguments of the constructor with the same names.

    Args:
        temperature: float above 0, or a schedule. The logits of both models are
            divided by it.
        from_logits: bool. `True` if both models return logits, `False` if both
            return probabilities.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation. Defaults to float32, independent of the
            dtype policies of the models: half precision loses the small
            probabilities of a softmax.

    Call arguments:
        y_true: the teacher's outputs, of shape `(..., classes)`, or a dict with
            these keys: `"teacher"` for the teacher's outputs, `"labels"` for
            the labels (missing for unlabelled data), and `"sample_weight"` for
            the weights multiplied by the mask, one per sample or place (missing
            if there are none).
        y_pred: the student's outputs, of shape `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Raises:
        ValueError: if `temperature` is not above 0, or if the outputs cannot be
            compared.

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

    predicts: str | None = None
    is_per_place: bool = False
    controls: tuple[str, ...] = ("temperature",)

    # Losses with this argument set it in their constructor.
    standardize_logits: bool = False

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = _schedules.number_or_schedule(
            "temperature", temperature, _arguments.positive_float
        )
        self.from_logits = bool(from_logits)

    def __call__(
        self,
        y_true: Tensors,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        if self.has_schedules:
            raise ValueError(
                f"{type(self).__name__} has schedules, and the step is unknown "
                "outside a Distiller. Received: schedules for "
                f"{', '.join(self.scheduled_values(0))}. Call "
                "`loss.at(step)(y_true, y_pred)`, or use numbers."
            )
        y_true = _with_weights(y_true, y_pred, sample_weight)
        # Each part is reduced on its own, as in a Distiller: a label loss with
        # `ignore_class` has its own mask.
        return sum(
            weight
            * _weighting.weighted_value(
                function, self, y_true, y_pred, sample_weight
            )
            for weight, function in self.parts().values()
        )

    @property
    def reads_most_probable(self) -> bool:
        """Whether `y_true["teacher"]` may be fields, see `_most_probable`."""
        return False

    @property
    def uses_labels(self) -> bool:
        """Whether `call` reads `y_true["labels"]`."""
        return True

    @property
    def uses_teacher(self) -> bool:
        """Whether `call` reads `y_true["teacher"]`."""
        return True

    def parts(self) -> Parts:
        """Return the terms of this loss, as `{log name: (weight, function)}`.

        Each function maps `(y_true, y_pred)` to one value per sample. The
        `Distiller` logs the mean of each term under its name.
        """
        return {"soft_loss": (1.0, self.call)}

    def outputs(self, y_true: Tensors, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unchanged outputs `(teacher, student)`, shape-checked.

        Args:
            y_true: as for calling the loss.
            y_pred: as for calling the loss.

        Raises:
            ValueError: if the shapes of the two outputs differ.
        """
        teacher = y_true["teacher"] if isinstance(y_true, dict) else y_true
        _shapes.check_comparable(self.predicts, teacher.shape, y_pred.shape)
        return _shapes.like(teacher, y_pred), y_pred

    def logits(self, y_true: Tensors, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 logits `(teacher, student)`, shape-checked.

        With `standardize_logits`, they are z-scores over the classes.

        Args:
            y_true: as for calling the loss.
            y_pred: as for calling the loss.

        Raises:
            ValueError: if the shapes of the two outputs differ.
        """
        if isinstance(y_true, dict) and isinstance(y_true["teacher"], dict):
            return _most_probable.logits(
                y_true["teacher"],
                _divergence.as_logits(y_pred, self.from_logits),
                self.temperature,
            )
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

    def __add__(self, other: keras.losses.Loss) -> "DistillationLoss":
        return _combined([(1.0, self), (1.0, other)])

    def __radd__(self, other: keras.losses.Loss | int) -> "DistillationLoss":
        if isinstance(other, int) and other == 0:
            return self  # `sum()` begins with 0.
        return _combined([(1.0, other), (1.0, self)])

    def __mul__(self, weight: float | Schedule) -> "DistillationLoss":
        return _combined([(weight, self)])

    __rmul__ = __mul__

    def get_config(self) -> dict[str, Any]:
        numbers = ("temperature", *self.controls)
        return {
            **super().get_config(),
            **{n: _schedules.serialize(getattr(self, n)) for n in numbers},
            "from_logits": self.from_logits,
            # The config of `keras.losses.Loss` does not contain the dtype.
            "dtype": self.dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(
            **{
                name: _schedules.deserialize(value)
                if name in cls.controls
                else value
                for name, value in config.items()
            }
        )


def _with_weights(y_true, y_pred, sample_weight):
    """Return `y_true` as a dict with the weight of each place."""
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
    # Imported here, because the two classes depend on each other: the sum of
    # losses is a subclass, and the operators of the base class construct it.
    from keras_distill.losses._combined_loss import CombinedLoss

    for _, loss in terms:
        if not isinstance(loss, keras.losses.Loss):
            return NotImplemented
    return CombinedLoss([loss for _, loss in terms], [w for w, _ in terms])
