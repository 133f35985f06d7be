"""20,000 steps of a tiny pair: memory, open files, threads and time stay.

`KERAS_BACKEND=jax python tests/long_run.py` prints one row per thousand steps,
and fails if something grows. Growth counts after the second thousand steps.

Other processes change the speed of a machine within minutes. So the last
thousand steps are not compared with the first thousand of the same pair, but
with those of a second pair, which is new: both train in turn, 100 steps each.
"""

import os
import pathlib
import time

# With tensors this small, threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
from common import BACKEND
from common import cnn
from common import images

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import TeacherAgreement

STEPS, THOUSAND, PART, WARM_UP = 20_000, 1000, 100, 2
MAX_GROWTH, MAX_SLOWDOWN = 5 * 2**20, 1.05


def resources():
    """Return the bytes of resident memory, and the open files and threads."""
    process = pathlib.Path("/proc/self")
    pages = int((process / "statm").read_text().split()[1])
    files, threads = (len(os.listdir(process / n)) for n in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, threads


class Watch(keras.callbacks.Callback):
    """Measures each epoch."""

    def __init__(self, verbose):
        super().__init__()
        self.verbose, self.resources, self.step_times = verbose, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        self.step_times.append(float(np.median(np.diff(self.times))))
        self.resources.append(resources())
        if self.verbose:
            memory, files, threads = self.resources[-1]
            print(
                f"{(epoch + 1) * THOUSAND:6d} steps: {memory / 2**20:8.2f} MB, "
                f"{files} files, {threads} threads, "
                f"{1e6 * self.step_times[-1]:.0f} us a step",
                flush=True,
            )


def new_pair():
    augment = ConsistentAugment([keras.layers.RandomFlip("horizontal")])
    distiller = Distiller(student=cnn(2), teacher=cnn(4), augment=augment)
    distiller.compile("adam", ClassicKD(), metrics=[TeacherAgreement()])
    return distiller


def train(distiller, steps, epochs=1, verbose=False):
    """Return the `Watch` of epochs of `steps` steps."""
    watch = Watch(verbose)
    x, y = images(4 * steps)
    distiller.fit(
        x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=[watch]
    )
    return watch


def slowdown_of(old):
    """Return the step time of an old pair over that of a new pair."""
    new = new_pair()
    train(new, PART)  # compiles
    ratios = []
    for _ in range(THOUSAND // PART):
        (new_time,), (old_time,) = (
            train(distiller, PART).step_times for distiller in (new, old)
        )
        ratios.append(old_time / new_time)
    return float(np.median(ratios))


def main():
    keras.utils.set_random_seed(0)
    distiller = new_pair()
    epochs = STEPS // THOUSAND - 1
    watch = train(distiller, THOUSAND, epochs, verbose=True)
    warm, end = watch.resources[WARM_UP - 1], watch.resources[-1]
    memory, files, threads = (b - a for a, b in zip(warm, end))
    slowdown = slowdown_of(distiller)
    print(
        f"{BACKEND}: memory {memory / 2**20:+.2f} MB, open files {files:+d}, "
        f"threads {threads:+d}, last thousand steps {slowdown:.3f} of the first"
    )
    assert memory < MAX_GROWTH, "Memory grows."
    assert files <= 0, "Open files grow."
    assert threads <= 0, "Threads grow."
    assert slowdown < MAX_SLOWDOWN, "Steps become slower."


if __name__ == "__main__":
    main()
