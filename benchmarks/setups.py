"""Distillers, their rivals and their data, ready to be timed."""

import keras
import numpy as np
from keras import ops

from benchmarks import loops
from keras_distill import Distiller
from keras_distill import FunctionMatching

BATCHES = 4


def images(pair, labels=False, count=BATCHES):
    """Return a list of `(x, y)`, tensors of random pixels and labels."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        x = random.random((pair.batch, pair.size, pair.size, 3), "float32")
        y = random.integers(0, pair.classes, pair.batch).astype("int32")
        y = ops.convert_to_tensor(y) if labels else None
        batches.append((ops.convert_to_tensor(x), y))
    return batches


def optimizer():
    return keras.optimizers.Adam(1e-3)


def distiller(
    pair, loss=None, labels=False, batches=None, teachers=None, **arguments
):
    """Return `run(steps)` of a Distiller on a pair."""
    if teachers is None:
        teachers = pair.teacher()
    model = Distiller(student=pair.student(), teacher=teachers, **arguments)
    model.compile(optimizer(), loss=loss or FunctionMatching())
    return loops.training(model, batches or images(pair, labels))


def teacher_and_student(pair):
    """Return `run(steps)`: the teacher runs, then the student trains.

    The student learns from stored outputs, with the same loss. Every
    distillation requires this work.
    """
    teacher, student = pair.teacher(), pair.student()
    batches = images(pair)
    forward = loops.inference(teacher)
    stored = [(x, ops.copy(forward(x))) for x, _ in batches]
    student.compile(optimizer(), loss=FunctionMatching())
    return loops.together(
        loops.repeated(forward, [x for x, _ in batches]),
        loops.training(student, stored),
    )


def keras_distiller(pair, distillation_loss):
    """Return `run(steps)` of `keras.distillation.Distiller`, with labels."""
    model = keras.distillation.Distiller(
        teacher=pair.teacher(),
        student=pair.student(),
        distillation_losses=distillation_loss,
        student_loss_weight=0.5,
    )
    model.compile(
        optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return loops.training(model, images(pair, labels=True))


def hand_written(pair):
    """Return `run(steps)` of the loop that one would write oneself."""
    return loops.by_hand(
        pair.teacher(),
        pair.student(),
        optimizer(),
        FunctionMatching(),
        images(pair),
    )
