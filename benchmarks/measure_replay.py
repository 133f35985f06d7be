"""Recorded teachers: what replaying costs beside the student alone.

Both sides run `fit()` on arrays, since reading the recording and the data is
part of what a replayed step costs.
"""

import tempfile

import keras
import numpy as np

from benchmarks import models
from benchmarks import setups
from benchmarks.measure_steps import TITLES
from benchmarks.timing import compare
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import record_teacher

GOAL = 1.10
BATCHES = 20
# `fit()` reads all data once as it starts, to know that they are those of the
# recording. Patience means many epochs per call.
EPOCHS = 3


def replay(smoke):
    pair = models.pairs(smoke)["cnn"]
    rows = []
    for name, views in (("without views", _no_views), ("with views", _views)):
        with tempfile.TemporaryDirectory() as folder:
            x = _record(pair, views, folder, smoke)
            measured = compare(
                lambda: _replayed(pair, views, folder, x),  # noqa: B023
                lambda: _alone(pair, views, x),  # noqa: B023
                smoke=smoke,
            )
        rows.append(
            {
                "title": "replayed step / student alone on stored outputs, "
                f"`fit()`, {TITLES['cnn']}, {name}",
                "goal": GOAL,
                **measured,
            }
        )
    return rows


def _no_views(pair):
    return None


def _views(pair):
    return ConsistentAugment(
        [
            InceptionCrop(pair.size, pair.size),
            keras.layers.RandomFlip("horizontal"),
            MixUp(),
        ]
    )


def _record(pair, views, folder, smoke):
    count = pair.batch * (1 if smoke else BATCHES)
    x = np.random.default_rng(0).random(
        (count, pair.size, pair.size, 3), "float32"
    )
    record_teacher(
        pair.teacher(),
        x,
        folder,
        augment=views(pair),
        batch_size=pair.batch,
        verbose=0,
    )
    return x


def _replayed(pair, views, folder, x):
    distiller = Distiller(
        student=pair.student(),
        teacher=RecordedTeacher(folder),
        augment=views(pair),
    )
    distiller.compile(setups.optimizer(), loss=FunctionMatching())

    def run(times):
        distiller.fit(x, epochs=EPOCHS * times, verbose=0)

    return run


def _alone(pair, views, x):
    """Train the student on its own views, and on outputs in memory."""
    augment = views(pair)
    student = keras.Sequential(
        [
            keras.Input((pair.size, pair.size, 3)),
            *([] if augment is None else [augment]),
            pair.student(),
        ]
    )
    student.compile(setups.optimizer(), loss=FunctionMatching())
    outputs = np.zeros((len(x), pair.classes), "float32")

    def run(times):
        student.fit(x, outputs, pair.batch, epochs=EPOCHS * times, verbose=0)

    return run
