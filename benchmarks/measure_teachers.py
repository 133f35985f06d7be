"""Faster teachers: the time of a forward pass, and how much is lost."""

import keras
import numpy as np
from keras import ops

from benchmarks import loops
from benchmarks import models
from benchmarks import setups
from benchmarks.timing import compare
from keras_distill import FunctionMatching
from keras_distill.compression import fold_batch_norm
from keras_distill.teachers._precision import InPrecision


def cheaper_teachers(smoke):
    pairs = models.pairs(smoke)
    width, batch = (8, 4) if smoke else (2048, 128)
    vectors = np.random.default_rng(0).normal(size=(batch, width))
    vectors = ops.convert_to_tensor(vectors.astype("float32"))
    cases = [
        ("bfloat16, CNN (256, 512)", pairs["cnn"], _bfloat16),
        ("bfloat16, ResNet-50 at 96 px", pairs["imagenet"], _bfloat16),
        ("`fold_batch_norm`, ResNet-56", pairs["resnet"], _folded),
        ("`fold_batch_norm`, ResNet-50 at 96 px", pairs["imagenet"], _folded),
    ]
    rows = []
    for title, pair, change in cases:
        (x, _), *_ = setups.images(pair, count=1)
        rows.append(_row(title, pair.teacher, pair.student, change, x, smoke))
    rows.append(
        _row(
            f"int8, three Dense layers of {width}",
            lambda: models.dense(width),
            lambda: keras.Sequential(
                [keras.Input((width,)), keras.layers.Dense(10)]
            ),
            _int8,
            vectors,
            smoke,
        )
    )
    return rows


def _row(title, make_teacher, make_student, change, x, smoke):
    teacher = make_teacher()
    cheaper = change(teacher)
    passes = [loops.inference(model) for model in (cheaper, teacher)]
    measured = compare(
        lambda: loops.repeated(passes[0], [x]),
        lambda: loops.repeated(passes[1], [x]),
        instances=1,
        seconds=2.0,
        smoke=smoke,
    )
    student = loops.inference(make_student())(x)
    losses = [
        float(FunctionMatching()(ops.cast(forward(x), "float32"), student))
        for forward in passes
    ]
    change = abs(losses[0] - losses[1]) / max(losses[1], 1e-12)
    return {
        "title": f"teacher's forward pass / that of the plain teacher, {title}",
        "loss_change": float(f"{change:.2g}"),
        **measured,
    }


class _Bfloat16:
    """What `Distiller(teacher_dtype="bfloat16")` runs."""

    def __init__(self, teacher):
        self.run = InPrecision(teacher, "bfloat16")
        self.variables = teacher.variables

    def __call__(self, x, training):
        return self.run(x)


def _bfloat16(teacher):
    return _Bfloat16(teacher)


def _folded(teacher):
    return fold_batch_norm(teacher)


def _int8(teacher):
    copy = keras.models.clone_model(teacher)
    copy.set_weights(teacher.get_weights())
    copy.quantize("int8")
    return copy
