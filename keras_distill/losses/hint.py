"""Hint: an inner layer of the student learns from one of the teacher."""

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.views import images


@keras.saving.register_keras_serializable(package="keras_distill")
class Hint:
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
            models, such as `"backbone/conv3_block4_out"`.
        student_layer: the same for the student.
        loss: a Keras loss, its name, or a function
            `(teacher_feature, student_feature) -> values per sample`. Both
            features have the channels last.
        weight: float of at least 0, on the scale of `loss`.
        projector: `"auto"`, `None` for no projector, or a Keras layer that
            takes the student's feature with the channels last.

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

    def __init__(
        self,
        teacher_layer,
        student_layer,
        loss="mse",
        weight=1.0,
        projector="auto",
    ):
        self.teacher_layer = _name("teacher_layer", teacher_layer)
        self.student_layer = _name("student_layer", student_layer)
        self.loss = keras.losses.get(loss)
        if self.loss is None:
            raise ValueError("`loss` of a Hint must be a loss. Received: None")
        self.weight = _arguments.non_negative_float("weight", weight)
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

    def values(self, teacher, student):
        """Return the loss of each sample, `(batch,)`, of projected features.

        Args:
            teacher, student: features of the same width, channels last.
        """
        teacher, student = _same_size(teacher, student)
        if isinstance(self.loss, keras.losses.Loss):
            values = self.loss.call(teacher, student)
        else:
            values = self.loss(teacher, student)
        if len(values.shape) == 0:
            raise ValueError(
                f"The loss of {self!r} must return values per sample, and "
                "returned a single number. Leave out its own mean."
            )
        return ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), -1)

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
        projector = existing or self.projector
        if projector == "auto":
            if width == student_shape[-1]:
                return None
            projector = keras.layers.Dense(width)
        if projector is not None and not projector.built:
            projector.build(tuple(student_shape))
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

    def get_config(self):
        return {
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
            "loss": keras.losses.serialize(self.loss),
            "weight": self.weight,
            "projector": keras.saving.serialize_keras_object(self.projector),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["loss"] = keras.losses.deserialize(config["loss"])
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
        teacher = images.resize_axis(teacher, axis, size)
        student = images.resize_axis(student, axis, size)
    return teacher, student


def _name(argument, value):
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"`{argument}` must be the name or the path of a layer. "
            f"Received: {argument}={value!r}"
        )
    return value
