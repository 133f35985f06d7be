"""`Resume`: a killed run ends, bit for bit, like one that never stopped."""

import functools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest
import torch
from common import cnn
from common import images
from common import to_numpy

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import Resume
from keras_distill import record_teacher

BACKEND = keras.backend.backend()
X, Y = images(40)
EPOCHS = 4


class Killed(BaseException):
    """In place of a signal: ends `fit()` between two batches."""


class KillAt(keras.callbacks.Callback):
    """Ends a run after some batches, and counts what it sees."""

    def __init__(self, kill_after=None):
        super().__init__()
        self.kill_after, self.begun = kill_after, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun += 1

    def on_train_batch_end(self, batch, logs=None):
        if self.kill_after is not None:
            self.kill_after -= 1  # not restored: it is an argument
            if self.kill_after == 0:
                raise Killed


class OneOrderAnEpoch(keras.utils.PyDataset):
    """Shuffles itself at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.generator, self.order = np.random.default_rng(0), np.arange(40)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        rows = self.order[8 * index : 8 * index + 8]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        self.generator.shuffle(self.order)


def tf_dataset():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    return dataset.shuffle(40, seed=3).batch(8)


def loader():
    torch.manual_seed(7)  # Keras seeds PyTorch as a backend only
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)


DATA = {
    "arrays": lambda: dict(x=X, y=Y, batch_size=8),
    "arrays in batches": lambda: dict(x=X, y=Y, batch_size=8, shuffle="batch"),
    "PyDataset": lambda: dict(x=OneOrderAnEpoch()),
    "PyDataset in one order": lambda: dict(
        x=OneOrderAnEpoch(), shuffle=False
    ),
    "tf.data": lambda: dict(x=tf_dataset(), shuffle=False),
    "tf.data of unknown size": lambda: dict(
        x=tf_dataset().filter(lambda x, y: True), shuffle=False
    ),
    "tf.data over epochs": lambda: dict(
        x=tf_dataset().repeat(), steps_per_epoch=4, shuffle=False
    ),
    "DataLoader": lambda: dict(x=loader(), shuffle=False),
}


def plain_model():
    model = keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(5),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 20)
    optimizer = keras.optimizers.Adam(schedule, use_ema=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def distiller(teacher=None, loss=None):
    augment = ConsistentAugment([InceptionCrop(8, 8), MixUp()], seed=4)
    model = Distiller(
        student=cnn(2), teacher=teacher or cnn(16), augment=augment
    )
    model.compile(
        keras.optimizers.Adam(0.01), loss or ClassicKD(0.8), metrics=["accuracy"]
    )
    return model


def run(make, data, folder=None, kill_after=None, save_freq=2):
    """Run one `fit()` from its beginning; return everything it ends with."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    model = make()
    counter = KillAt(kill_after)
    resume = [] if folder is None else [Resume(folder, save_freq=save_freq)]
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=0, min_delta=10
    )
    learning_rate = model.optimizer.get_config()["learning_rate"]
    history = model.fit(
        **{"validation_data": (X[:8], Y[:8]), **data()},
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            counter,
            *resume,
            *([plateau] if isinstance(learning_rate, float) else []),
        ],
    )
    variables = [*model.variables, *model.optimizer.variables]
    return (
        [to_numpy(variable) for variable in variables],
        history.history,
        counter.begun,
    )


def assert_equal(left, right):
    assert len(left[0]) == len(right[0])
    for a, b in zip(left[0], right[0]):
        np.testing.assert_array_equal(a, b)
    assert left[1:] == right[1:]


def killed(*arguments, **options):
    with pytest.raises(Killed):
        run(*arguments, **options)


# Keras says so at the end of each epoch whose size it did not know.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", DATA)
def test_a_killed_run_ends_like_one_never_stopped(kind, tmp_path):
    """In the middle of the third epoch, and again four batches later."""
    whole = run(plain_model, DATA[kind])
    killed(plain_model, DATA[kind], tmp_path, kill_after=9)
    killed(plain_model, DATA[kind], tmp_path, kill_after=4)
    assert_equal(run(plain_model, DATA[kind], tmp_path), whole)


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
@pytest.mark.parametrize("save_freq", [3, "epoch"])
def test_a_killed_distillation(kind, save_freq, tmp_path):
    whole = run(distiller, DATA[kind])
    options = dict(save_freq=save_freq)
    killed(distiller, DATA[kind], tmp_path, kill_after=7, **options)
    assert_equal(run(distiller, DATA[kind], tmp_path, **options), whole)


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_a_killed_replay_of_a_recording(kind, tmp_path):
    # A recording of two epochs is replayed twice.
    keras.utils.set_random_seed(7)  # the shuffle depends on it
    augment = ConsistentAugment([InceptionCrop(8, 8), MixUp()], seed=4)
    recorded = record_teacher(
        cnn(16),
        X if kind == "arrays" else tf_dataset(),
        tmp_path / "recording",
        augment=augment,
        epochs=2,
        batch_size=8,
        verbose=0,
    )

    def make():
        model = Distiller(student=cnn(2), teacher=recorded, augment=augment)
        model.compile(keras.optimizers.Adam(0.01), FunctionMatching())
        return model

    def data():
        return {**DATA[kind](), "validation_data": None}

    whole = run(make, data)
    killed(make, data, tmp_path / "run", kill_after=9)
    assert_equal(run(make, data, tmp_path / "run"), whole)
