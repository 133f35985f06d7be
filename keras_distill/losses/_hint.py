"""Hint: an inner layer of the student learns from one of the teacher."""

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill.views import _images


@keras.saving.register_keras_serializable(package="keras_distill")
class Hint(_schedules.Controlled):
    """Draws an inner layer of the student towards one of the teacher.

    With the teacher's feature `f_t`, the student's feature `f_s`, and a
    projector `P` that is trained along:

        hint_loss = weight * mean(loss(f_t, P(f_s)))

    The two layers may have any width and resolution. Where the widths differ,
    the projector is one linear map of the channels, at each place the same (a
    1x1 convolution). Where the resolutions differ, the larger feature map is
    resized to the smaller one. All hints are read from the one forward pass
    that each model makes anyway. The projectors belong to the `Distiller`: they
    are in its checkpoints, and never in the student.

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets",
    https://arxiv.org/abs/1412.6550.

    Args:
        teacher_layer: name of a layer of the teacher, or its path inside nested
            models, such as `"backbone/conv3_block4_out"`, or the end of it.
        student_layer: the same for the student.
        loss: a Keras loss, its name, or a function
            `(teacher_feature, student_feature) -> values per sample or place`.
            Both features have the channels last. Relational losses
            (`AttentionTransfer`, `SimilarityPreserving`, `RelationalKD`)
            compare features of different widths without a projector.
        weight: float of at least 0, on the scale of `loss`, or a schedule.
        projector: `"auto"`, `None` for no projector, or a Keras layer that
            takes the student's feature with the channels last. With `None`, a
            loss of your own decides itself which widths it can compare.

    Raises:
        ValueError: if the weight is negative, or the projector is no layer.

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
        teacher_layer,
        student_layer,
        *,
        loss="mse",
        weight=1.0,
        projector="auto",
    ):
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
    def relational(self):
        """Whether the loss compares features of any width, see `loss`."""
        return bool(getattr(self.loss, "relational", False))

    def values(self, teacher, student, weights=None):
        """Return the loss of each sample or place of projected features.

        Args:
            teacher, student: features `(batch, places..., width)`.
            weights: float weights of each place of the student's feature, of
                which a relational loss leaves out those of 0, or `None`.

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
                f"The loss of {self!r} must return values per sample, and "
                "returned a single number. Leave out its own mean."
            )
        return values

    def make_projector(self, teacher_shape, student_shape, existing=None):
        """Return the projector for features of these shapes, channels last.

        Args:
            teacher_shape, student_shape: shapes of the features.
            existing: the projector of an earlier teacher, kept if it fits.

        Raises:
            ValueError: if the features can't be compared.
        """
        received = (
            f"Received: {self.teacher_layer!r} of the teacher returns "
            f"{tuple(teacher_shape)}, {self.student_layer!r} of the student "
            f"{tuple(student_shape)}."
        )
        if self.relational and not self.loss.same_places:
            return _built(self.given_projector(existing), student_shape)
        if len(teacher_shape) != len(student_shape):
            raise ValueError(
                "The features of a hint must have the same rank. Name a "
                f"pooling layer, or the layer before it. {received}"
            )
        if len(teacher_shape) == 3 and teacher_shape[1] != student_shape[1]:
            raise ValueError(
                "Sequences of a hint must have the same length: their places "
                f"can't be resampled. {received}"
            )
        width = teacher_shape[-1]
        projector = self.given_projector(existing)
        if projector == "auto":
            if width == student_shape[-1]:
                return None
            projector = keras.layers.Dense(width)
        _built(projector, student_shape)
        if self.relational or (projector is None and self._is_own_loss):
            return projector  # The loss decides what it can compare.
        projected = student_shape
        if projector is not None:
            projected = projector.compute_output_shape(tuple(student_shape))
        if projected[-1] != width:
            raise ValueError(
                f"The features of a hint must have the same width. {received} "
                f"After projector={self.projector!r} the student has "
                f"{projected[-1]} channels. Use `projector='auto'`."
            )
        return projector

    def given_projector(self, existing=None):
        """Return the projector to use: a layer, `"auto"` or `None`."""
        if existing is not None:
            return existing
        if self.projector == "auto" and self.relational:
            return None
        return self.projector

    @property
    def _is_own_loss(self):
        home = getattr(self.loss, "__module__", None)
        return not (home or type(self.loss).__module__).startswith("keras.")

    def get_config(self):
        return {
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
            "loss": keras.losses.serialize(self.loss),
            "weight": _schedules.serialize(self.weight),
            "projector": keras.saving.serialize_keras_object(self.projector),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["loss"] = keras.losses.deserialize(config["loss"])
        config["weight"] = _schedules.deserialize(config["weight"])
        config["projector"] = keras.saving.deserialize_keras_object(
            config["projector"]
        )
        return cls(**config)

    def __repr__(self):
        return f"Hint({self.teacher_layer!r}, {self.student_layer!r})"


def channels_last(feature, layer):
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


def _built(projector, student_shape):
    if isinstance(projector, keras.layers.Layer) and not projector.built:
        projector.build(tuple(student_shape))
    return projector


def _name(argument, value):
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"`{argument}` must be the name or the path of a layer. "
            f"Received: {argument}={value!r}"
        )
    return value
