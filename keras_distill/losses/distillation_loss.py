"""DistillationLoss: the base of every loss that compares with a teacher.

Left out: a registry of losses by name. A loss has arguments that matter (the
temperature first of all), so it is always built explicitly.
"""

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.losses import divergence

_FIXED = (
    "temperature",
    "alpha",
    "from_logits",
    "standardize_logits",
    "label_loss",
    "inter_weight",
    "intra_weight",
    "target_weight",
    "non_target_weight",
    "label_weight",
)


class DistillationLoss(keras.losses.Loss):
    """Base class of the losses that compare a student with its teacher.

    Subclass it to write a loss of your own: implement
    `call(self, y_true, y_pred)` and return one value per sample. Inside a
    `Distiller`, every loss of this class gets the teacher's outputs, and every
    other Keras loss gets the labels.

    Args:
        temperature: float above 0 that divides the logits of both models.
        from_logits: bool. Whether the two models return logits or
            probabilities.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation. Defaults to float32 whatever the
            models' own policies: half precision loses the tail of a softmax.

    Call arguments:
        y_true: the dict `{"labels": ..., "teacher": ...}` (`"labels"` is
            missing for unlabelled data), or the teacher's outputs alone, of
            shape `(..., classes)`.
        y_pred: the student's outputs, of shape `(..., classes)`.
        sample_weight: optional weights, broadcastable to `(...)`.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class LogitDistance(keras_distill.DistillationLoss):
        def call(self, y_true, y_pred):
            teacher, student = self.logits(y_true, y_pred)
            return keras.ops.mean(
                keras.ops.square(teacher - student), axis=-1
            )
    ```
    """

    # The losses that offer it set it in their constructor.
    standardize_logits = False

    def __init__(
        self,
        temperature=1.0,
        from_logits=True,
        reduction="sum_over_batch_size",
        name=None,
        dtype="float32",
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = _arguments.positive_float("temperature", temperature)
        self.from_logits = bool(from_logits)

    def __setattr__(self, name, value):
        # Compiled steps hold these as constants. A change would be ignored
        # until the next compile(), without a word.
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(
                f"`{name}` of a {type(self).__name__} can't change: compiled "
                f"training steps hold it. Received: {name}={value!r}. Make a "
                "new loss and call `compile()` again."
            )
        super().__setattr__(name, value)

    @property
    def uses_labels(self):
        """Whether `call` reads `y_true["labels"]`."""
        return True

    def parts(self):
        """Return the terms of this loss, as `{log name: (weight, function)}`.

        Each function maps `(y_true, y_pred)` to one value per sample. The
        `Distiller` logs the mean of each under its name.
        """
        return {"soft_loss": (1.0, self.call)}

    def logits(self, y_true, y_pred):
        """Return `(teacher, student)` logits in float32, shape-checked.

        With `standardize_logits` they are z-scores over the classes.

        Args:
            y_true: as for calling the loss.
            y_pred: as for calling the loss.

        Raises:
            ValueError: if the shapes of the two outputs differ.
        """
        teacher = y_true["teacher"] if isinstance(y_true, dict) else y_true
        check_same_classes(teacher.shape, y_pred.shape)
        teacher = divergence.as_logits(teacher, self.from_logits)
        student = divergence.as_logits(y_pred, self.from_logits)
        if self.standardize_logits:
            return (
                divergence.standardize(teacher),
                divergence.standardize(student),
            )
        return teacher, student

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "from_logits": self.from_logits,
            # `keras.losses.Loss` leaves the dtype out of its config.
            "dtype": self.dtype,
        }


def check_same_classes(teacher_shape, student_shape, output=""):
    """Raise if two outputs can't be compared class by class.

    Args:
        teacher_shape, student_shape: static shapes, `None` where unknown.
        output: the name of the output, for the message.
    """
    where = f" for the output {output!r}" if output else ""
    received = (
        f"Received{where}: teacher output shape={tuple(teacher_shape)}, "
        f"student output shape={tuple(student_shape)}."
    )
    if len(teacher_shape) != len(student_shape):
        raise ValueError(
            "The outputs of teacher and student must have the same rank. "
            + received
        )
    teacher_classes, student_classes = teacher_shape[-1], student_shape[-1]
    if None not in (teacher_classes, student_classes):
        if teacher_classes != student_classes:
            raise ValueError(
                f"The teacher predicts {teacher_classes} classes and the "
                f"student {student_classes}. {received} Give the student a "
                f"last layer with {teacher_classes} units, or wrap the teacher "
                "in a model that selects the student's classes."
            )
        if student_classes == 1:
            raise ValueError(
                "A softmax over a single class is always 1, so there is "
                f"nothing to learn from it. {received} Give both models two "
                "units for two classes."
            )
    for teacher_size, student_size in zip(teacher_shape, student_shape):
        if None not in (teacher_size, student_size):
            if teacher_size != student_size:
                raise ValueError(
                    "The outputs of teacher and student must have the same "
                    "shape. " + received
                )


def as_one_hot_or_sparse(labels, student_shape):
    """Return `"sparse"` or `"one-hot"`, by the labels' shape.

    Raises:
        ValueError: if the labels fit neither form of the student's outputs.
    """
    shape, target = tuple(labels.shape), tuple(student_shape)
    if len(shape) == len(target) and shape[-1] == target[-1]:
        return "one-hot"
    if len(shape) == len(target) - 1 or (
        len(shape) == len(target) and shape[-1] == 1
    ):
        return "sparse"
    raise ValueError(
        f"Labels of shape {shape} don't fit a student that returns {target}. "
        f"Give class indices of shape {target[:-1]}, or one-hot labels or "
        f"probabilities of shape {target}."
    )


def label_cross_entropy(labels, student_logits):
    """Return the cross-entropy with labels, sparse or one-hot by their shape.

    Args:
        labels: class indices `(...)` or `(..., 1)`, or probabilities
            `(..., classes)`.
        student_logits: `(..., classes)`.
    """
    if as_one_hot_or_sparse(labels, student_logits.shape) == "one-hot":
        return keras.losses.categorical_crossentropy(
            labels, student_logits, from_logits=True
        )
    labels = ops.reshape(labels, ops.shape(student_logits)[:-1])
    return keras.losses.sparse_categorical_crossentropy(
        labels, student_logits, from_logits=True
    )
