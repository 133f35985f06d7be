"""Checks that the outputs of teacher and student can be compared.

Shapes are static: sequences of ints, and `None` for unknown sizes.
"""

from collections.abc import Sequence
from typing import TypeAlias

from keras import ops

from keras_distill._typing import Tensor

Shape: TypeAlias = Sequence[int | None]


def check_comparable(
    predicts: str | None,
    teacher_shape: Shape,
    student_shape: Shape,
    output: str = "",
) -> None:
    """Check that a loss can compare two outputs.

    Args:
        predicts: as the attribute of `DistillationLoss`.
        teacher_shape: static shape.
        student_shape: static shape.
        output: the name of the output, for the message.

    Raises:
        ValueError: if the outputs cannot be compared.
    """
    if predicts == "classes":
        check_same_classes(teacher_shape, student_shape, output)
    elif predicts is None or not fits(teacher_shape, student_shape):
        check_same_shape(teacher_shape, student_shape, output)


def fits(shape: Shape, target: Shape) -> bool:
    """Return whether two shapes are the same, except for a last axis of size 1.

    `(batch,)` fits `(batch, 1)`, and the reverse.
    """
    shape, target = tuple(shape), tuple(target)
    if len(shape) == len(target) - 1 and target[-1] == 1:
        shape = (*shape, 1)
    elif len(target) == 1 and len(shape) == 2 and shape[-1] == 1:
        shape = shape[:-1]
    return same_sizes(shape, target)


def same_sizes(shape: Shape, other: Shape) -> bool:
    """Return whether two shapes are equal where both are known."""
    return len(shape) == len(other) and all(
        a == b or None in (a, b) for a, b in zip(shape, other)
    )


def like(values: Tensor, outputs: Tensor) -> Tensor:
    """Return values with the rank of outputs. Their shapes must pass `fits`."""
    return with_rank(values, len(outputs.shape))


def with_rank(values: Tensor, rank: int) -> Tensor:
    """Return values with a last axis of size 1 more or less, if necessary."""
    if len(values.shape) < rank:
        return ops.expand_dims(values, axis=-1)
    if len(values.shape) > rank:
        return ops.squeeze(values, axis=-1)
    return values


def with_units(values: Tensor) -> Tensor:
    """Return `(batch,)` as `(batch, 1)`, and any other shape unchanged."""
    return ops.expand_dims(values, -1) if len(values.shape) == 1 else values


def check_same_shape(
    teacher_shape: Shape, student_shape: Shape, output: str = ""
) -> None:
    """Check that two outputs can be compared value by value.

    Args:
        teacher_shape: static shape.
        student_shape: static shape.
        output: the name of the output, for the message.

    Raises:
        ValueError: if the shapes differ.
    """
    received = _received(teacher_shape, student_shape, output)
    if len(teacher_shape) != len(student_shape):
        raise ValueError(
            "The outputs of teacher and student must have the same rank. "
            + received
        )
    for teacher_size, student_size in zip(teacher_shape, student_shape):
        if None not in (teacher_size, student_size):
            if teacher_size != student_size:
                raise ValueError(
                    "The outputs of teacher and student must have the same "
                    "shape. " + received
                )


def check_same_classes(
    teacher_shape: Shape, student_shape: Shape, output: str = ""
) -> None:
    """Check that two outputs can be compared as softmax distributions.

    Args:
        teacher_shape: static shape.
        student_shape: static shape.
        output: the name of the output, for the message.

    Raises:
        ValueError: if the shapes differ, or if there is only one class.
    """
    received = _received(teacher_shape, student_shape, output)
    if len(teacher_shape) == len(student_shape) > 0:
        teacher_classes, student_classes = teacher_shape[-1], student_shape[-1]
        known = None not in (teacher_classes, student_classes)
        if known and teacher_classes != student_classes:
            raise ValueError(
                f"The teacher predicts {teacher_classes} classes and the "
                f"student {student_classes}. {received} Use a last layer with "
                f"{teacher_classes} units in the student, or wrap the teacher "
                "in a model that selects the student's classes."
            )
        if student_classes == 1 or len(student_shape) == 1:
            raise ValueError(
                "A softmax over a single class is always 1, so the student "
                f"learns nothing from it. {received} Use `BinaryKD()` for a "
                "sigmoid unit, `ValueMatching()` for a value, or two units for "
                "two classes in both models."
            )
    check_same_shape(teacher_shape, student_shape, output)


def _received(teacher_shape, student_shape, output):
    where = f" for the output {output!r}" if output else ""
    return (
        f"Received{where}: teacher output shape={tuple(teacher_shape)}, "
        f"student output shape={tuple(student_shape)}."
    )
