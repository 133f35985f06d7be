"""Hint: an inner layer of the student learns from one of the teacher."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill.losses._label_loss import is_of_keras
from keras_distill.views import _images


@keras.saving.register_keras_serializable(package="keras_distill")
class Hint(_schedules.Controlled):
    """Compares an inner layer of the student with one of the teacher.

    This is feature distillation. With the teacher's feature `f_t`, the
    student's feature `f_s`, and a projector `P` that is trained together with
    the student:

        hint_loss = weight * mean(loss(f_t, P(f_s)))

    The two layers may have any width and resolution. If the widths differ, the
    projector is a linear map of the channels, the same at each place (a 1x1
    convolution). If the resolutions differ, the larger feature map is resized
    to the smaller one. The features of all hints are captured in one forward
    pass of each model. The projectors are part of the `Distiller` and its
    checkpoints, and never of the student.

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets",
    https://arxiv.org/abs/1412.6550.

    Args:
        teacher_layer: name of a layer of the teacher, or its path inside nested
            models, such as `"backbone/conv3_block4_out"`, or the end of this
            path.
        student_layer: name or path of a layer of the student.
        loss: a Keras loss, its name, or a function
            `(teacher_feature, student_feature) -> values per sample or place`.
            Both features are channels last. The relational losses
            `AttentionTransfer`, `SimilarityPreserving` and `RelationalKD`
            compare features of different widths without a projector.
        weight: float of at least 0, or a schedule. Choose it for the scale of
            `loss`.
        projector: `"auto"`, `None` for no projector, or a Keras layer that
            takes the student's feature, channels last. With `None` and a custom
            loss, the widths are not checked.

    Raises:
        ValueError: if the weight is negative, or if the projector is not a
            layer.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import Distiller, FunctionMatching, Hint

    def cnn(width):
        return keras.Sequential(
            [keras.Input((8, 8, 1)),
             keras.layers.Conv2D(width, 3, activation="relu", name="conv"),
             keras.layers.GlobalAveragePooling2D(),
             keras.layers.Dense(3)]
        )

    distiller = Distiller(
        student=cnn(4), teacher=cnn(32), hints=[Hint("conv", "conv")]
    )
    distiller.compile("adam", loss=FunctionMatching())
    distiller.fit(np.random.rand(32, 8, 8, 1), verbose=0)
    ```
    """

    controls = ("weight",)

    def __init__(
        self,
        teacher_layer: str,
        student_layer: str,
        *,
        loss: str | keras.losses.Loss | Callable = "mse",
        weight: float | Schedule = 1.0,
        projector: str | keras.layers.Layer | None = "auto",
    ) -> None:
        self.teacher_layer = _name("teacher_layer", teacher_layer)
        self.student_layer = _name("student_layer", student_layer)
        self.loss = keras.losses.get(loss)
        if self.loss is None:
            raise ValueError("`loss` of a Hint must be a loss. Received: None")
        self.weight = _schedules.number_or_schedule(
            "weight", weight, _arguments.non_negative_float
        )
        if not (
            projector in ("auto", None)
            if isinstance(projector, (str, type(None)))
            else isinstance(projector, keras.layers.Layer)
        ):
            raise ValueError(
                "`projector` must be 'auto', None or a Keras layer. "
                f"Received: projector={projector!r}"
            )
        self.projector = projector

    @property
    def relational(self) -> bool:
        """Whether the loss compares features of any width."""
        return bool(getattr(self.loss, "relational", False))

    def values(
        self, teacher: Tensor, student: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each sample or place.

        Args:
            teacher: feature `(batch, places..., width)`.
            student: projected feature `(batch, places..., width)`.
            weights: `None`, or the weight of each place of the student's
                feature. Relational losses leave out places of weight 0.

        Returns:
            A tensor `(batch,)` or `(batch, places...)`.
        """
        if not self.relational or self.loss.same_places:
            teacher, student = _same_size(teacher, student)
        call = self.loss
        if isinstance(self.loss, keras.losses.Loss):
            call = self.loss.call
        if self.relational:
            values = call(teacher, student, weights)
        else:
            values = call(teacher, student)
        if len(values.shape) == 0:
            raise ValueError(
                f"The loss of {self!r} must return one value per sample or "
                "place. Received: a single number. Remove the mean over the "
                "batch from the loss."
            )
        return values

    def make_projector(
        self,
        teacher_shape: Sequence[int | None],
        student_shape: Sequence[int | None],
        existing: keras.layers.Layer | None = None,
    ) -> keras.layers.Layer | None:
        """Return the projector for features of these shapes.

        Args:
            teacher_shape: shape of the teacher's feature, channels last.
            student_shape: shape of the student's feature, channels last.
            existing: the projector for an earlier teacher, which is used again
                if its shape is right.

        Raises:
            ValueError: if the features cannot be compared.
        """
        projector = self.projector if existing is None else existing
        if projector == "auto":
            projector = None
            if not self.relational and teacher_shape[-1] != student_shape[-1]:
                projector = keras.layers.Dense(teacher_shape[-1])
        if not self.relational or self.loss.same_places:
            self._check_places(teacher_shape, student_shape)
        if isinstance(projector, keras.layers.Layer) and not projector.built:
            projector.build(tuple(student_shape))
        # Without a projector, a custom loss itself checks the widths.
        is_custom = projector is None and not is_of_keras(self.loss)
        if not self.relational and not is_custom:
            self._check_widths(teacher_shape, student_shape, projector)
        return projector

    def _check_places(self, teacher_shape, student_shape):
        received = self._received(teacher_shape, student_shape)
        if len(teacher_shape) != len(student_shape):
            raise ValueError(
                "The features of a hint must have the same rank. "
                f"{received} Use the layers before the pooling in both models, "
                "or the pooling layers in both."
            )
        if len(teacher_shape) == 3 and teacher_shape[1] != student_shape[1]:
            raise ValueError(
                "Sequences of a hint must have the same length, because "
                f"sequences are not resized. {received} Use layers that return "
                "the same length."
            )

    def _check_widths(self, teacher_shape, student_shape, projector):
        projected_shape = student_shape
        if projector is not None:
            projected_shape = projector.compute_output_shape(
                tuple(student_shape)
            )
        if projected_shape[-1] != teacher_shape[-1]:
            received = self._received(teacher_shape, student_shape)
            raise ValueError(
                f"The features of a hint must have the same width. {received} "
                f"With projector={self.projector!r}, the student's feature has "
                f"{projected_shape[-1]} channels. Use `projector='auto'`."
            )

    def _received(self, teacher_shape, student_shape):
        return (
            f"Received: shape {tuple(teacher_shape)} from the teacher's layer "
            f"{self.teacher_layer!r}, and shape {tuple(student_shape)} from "
            f"the student's layer {self.student_layer!r}."
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
            "loss": keras.losses.serialize(self.loss),
            "weight": _schedules.serialize(self.weight),
            "projector": keras.saving.serialize_keras_object(self.projector),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        config["loss"] = keras.losses.deserialize(config["loss"])
        config["weight"] = _schedules.deserialize(config["weight"])
        config["projector"] = keras.saving.deserialize_keras_object(
            config["projector"]
        )
        return cls(**config)

    def __repr__(self) -> str:
        return f"Hint({self.teacher_layer!r}, {self.student_layer!r})"


def channels_last(feature: Tensor, layer: keras.layers.Layer) -> Tensor:
    """Return the feature of a layer with the channels on the last axis."""
    data_format = getattr(layer, "data_format", None)
    data_format = data_format or keras.config.image_data_format()
    if len(feature.shape) >= 4 and data_format == "channels_first":
        return ops.moveaxis(feature, 1, -1)
    return feature


def _same_size(teacher, student):
    """Resize the larger of two feature maps along each spatial axis."""
    for axis in range(1, len(teacher.shape) - 1):
        size = min(teacher.shape[axis], student.shape[axis])
        teacher = _images.resize_axis(teacher, axis, size)
        student = _images.resize_axis(student, axis, size)
    return teacher, student


def _name(argument, value):
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"`{argument}` must be the name or the path of a layer. "
            f"Received: {argument}={value!r}"
        )
    return value
