"""Kills runs with `kill -9` at random moments, and checks how they end.

    KERAS_BACKEND=jax python tests/random_kills.py

For each kind of data, a distillation that saves every 7 batches is killed 30
times and started again. It saves so often that many kills fall into the
writing. In the end, all weights and losses must be equal, bit by bit, to those
of a run that was never stopped.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import tempfile
import time

import keras
import numpy as np
import torch  # noqa: F401
from common import cnn
from programs import command
from programs import environment
from test_resume import DATA
from test_resume import X
from test_resume import distiller
from test_resume import to_numpy
from test_resume import view

from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Resume
from keras_distill import record_teacher

KINDS = ("arrays", "tf.data", "PyDataset", "replay")
EPOCHS = 100


def replayed(folder):
    recorded = record_teacher(
        cnn(16), X, folder, augment=view(), epochs=2, batch_size=8, verbose=0
    )
    model = Distiller(student=cnn(2), teacher=recorded, augment=view())
    model.compile(keras.optimizers.Adam(0.01), FunctionMatching())
    return model


def train(kind, folder):
    """Run, in this process, what gets killed."""
    keras.utils.set_random_seed(7)
    data = DATA["arrays" if kind == "replay" else kind]()
    model = replayed(folder / "recording") if kind == "replay" else distiller()

    def print_and_wait(batch, logs):
        print("batch", flush=True)
        time.sleep(0.02)  # about as fast on each backend

    report = keras.callbacks.LambdaCallback(on_train_batch_end=print_and_wait)
    history = model.fit(
        **data,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[report, Resume(folder / "run", save_freq=7)],
    )
    values = [to_numpy(variable) for variable in model.variables]
    np.savez(folder / "end.npz", *values, loss=history.history["loss"])


def start(kind, folder):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command(__file__, "--train", kind, folder),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def check(kind, kills):
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = pathlib.Path(folder, "a"), pathlib.Path(folder, "b")
        with start(kind, whole) as process:
            process.communicate()
        draw, in_writing = random.Random(0), 0
        for _ in range(kills):
            with start(kind, killed) as process:
                # By batches and not by the clock, so that a busy machine
                # reaches states too. A batch takes some 25 milliseconds.
                for _ in range(draw.randint(1, 16)):
                    process.stdout.readline()
                time.sleep(draw.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
            in_writing += (killed / "run" / "unfinished").exists()
        assert not (killed / "end.npz").exists(), "It ended before a kill."
        newest = sorted((killed / "run").glob("state-*"))[-1].name
        with start(kind, killed) as process:
            process.communicate()
        assert process.returncode == 0
        with np.load(whole / "end.npz") as a, np.load(killed / "end.npz") as b:
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
    print(
        f"{keras.backend.backend()}, {kind}: {kills} kills, {in_writing} of "
        f"them while a state was written, the last in {newest}; equal bit by "
        "bit",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--train", nargs=2, help="used by the script itself")
    options = parser.parse_args()
    if options.train:
        kind, folder = options.train
        train(kind, pathlib.Path(folder))
        return
    for kind in options.kinds:
        check(kind, options.kills)


if __name__ == "__main__":
    main()
