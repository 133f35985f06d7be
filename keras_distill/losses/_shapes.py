"""Whether the outputs of teacher and student can be compared.

Shapes are static; `None` stands for a size that is not known.
"""

from keras import ops


def check_comparable(predicts, teacher_shape, student_shape, output=""):
    """Raise if a loss that predicts this can't compare two outputs.

    Args:
        predicts: as the attribute of `DistillationLoss`.
        teacher_shape, student_shape: static shapes, `None` where unknown.
        output: the name of the output, for the message.
    """
    if predicts == "classes":
        check_same_classes(teacher_shape, student_shape, output)
    elif predicts is None or not fits(teacher_shape, student_shape):
        check_same_shape(teacher_shape, student_shape, output)


def fits(shape, target):
    """Tell whether values fit outputs, but for a last axis of one unit.

    `(batch,)` fits `(batch, 1)`, and the reverse.
    """
    shape, target = tuple(shape), tuple(target)
    if len(shape) == len(target) - 1 and target[-1] == 1:
        shape = (*shape, 1)
    elif len(target) == 1 and len(shape) == 2 and shape[-1] == 1:
        shape = shape[:-1]
    return same_sizes(shape, target)


def same_sizes(shape, other):
    """Tell whether two shapes are equal where both are known."""
    return len(shape) == len(other) and all(
        a == b or None in (a, b) for a, b in zip(shape, other)
    )


def like(values, outputs):
    """Return values that `fits` outputs, in the shape of the outputs."""
    if len(values.shape) < len(outputs.shape):
        return ops.expand_dims(values, axis=-1)
    if len(values.shape) > len(outputs.shape):
        return ops.squeeze(values, axis=-1)
    return values


def with_units(values):
    """Return `(batch,)` as `(batch, 1)`, and everything else as it is."""
    return ops.expand_dims(values, -1) if len(values.shape) == 1 else values


def check_same_shape(teacher_shape, student_shape, output=""):
    """Raise if two outputs can't be compared value by value.

    Args:
        teacher_shape, student_shape: static shapes, `None` where unknown.
        output: the name of the output, for the message.
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


def check_same_classes(teacher_shape, student_shape, output=""):
    """Raise if two outputs can't be compared as softmax distributions.

    Args:
        teacher_shape, student_shape: static shapes, `None` where unknown.
        output: the name of the output, for the message.
    """
    received = _received(teacher_shape, student_shape, output)
    if len(teacher_shape) == len(student_shape) > 0:
        teacher_classes, student_classes = teacher_shape[-1], student_shape[-1]
        known = None not in (teacher_classes, student_classes)
        if known and teacher_classes != student_classes:
            raise ValueError(
                f"The teacher predicts {teacher_classes} classes and the "
                f"student {student_classes}. {received} Give the student a "
                f"last layer with {teacher_classes} units, or wrap the teacher "
                "in a model that selects the student's classes."
            )
        if student_classes == 1 or len(student_shape) == 1:
            raise ValueError(
                "A softmax over a single class is always 1, so there is "
                f"nothing to learn from it. {received} For one sigmoid unit "
                "use `BinaryKD()`, for a value `ValueMatching()`, or give both "
                "models two units for two classes."
            )
    check_same_shape(teacher_shape, student_shape, output)


def _received(teacher_shape, student_shape, output):
    where = f" for the output {output!r}" if output else ""
    return (
        f"Received{where}: teacher output shape={tuple(teacher_shape)}, "
        f"student output shape={tuple(student_shape)}."
    )
