"""Two processes beside one, each pinned to one core of its own.

Each process trains on batches of one size, so two processes take twice the
samples in a step. If they cost nothing, a step takes as long as that of one
process. Two processes that are not connected show what the machine costs:
cores share caches, and may be threads of one core.

The processes are started for each round, and time their steps at the same time.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time

import keras
import numpy as np
from keras import ops

from benchmarks import models
from benchmarks import processes
from keras_distill import Distiller

ROUNDS, FITS, STEPS = 3, 5, 40
LAYERS, WIDTH, BATCH = 100, 16, 32


def scaling(smoke):
    rounds = 1 if smoke else ROUNDS
    times = {"one": [], "apart": [], "connected": []}
    for _ in range(rounds):
        times["one"].append(_seconds(1, "cnn", smoke))
        times["apart"].append(_seconds(2, "cnn", smoke, connected=False))
        times["connected"].append(_seconds(2, "cnn", smoke))
    pair = "CNN (256, 512) to CNN (16, 32)"
    return [
        _row(f"2 processes / 1 process, {pair}", times, "one"),
        _row(f"2 processes / 2 that are not connected, {pair}", times, "apart"),
    ]


def teacher_variables(smoke):
    times = {"few": [], "connected": []}
    for _ in range(1 if smoke else ROUNDS):
        times["few"].append(_seconds(2, "few", smoke))
        times["connected"].append(_seconds(2, "many", smoke))
    title = (
        f"2 processes: a teacher with {2 * LAYERS} variables / the same values "
        "in 2 variables"
    )
    return [_row(title, times, "few")]


def _row(title, times, reference):
    pairs = [*zip(times["connected"], times[reference])]
    ratios = [ours / theirs for ours, theirs in pairs]
    medians = [statistics.median(side) for side in zip(*pairs)]
    return {
        "title": title,
        "ratio": round(statistics.median(ratios), 4),
        "low": round(min(ratios), 4),
        "high": round(max(ratios), 4),
        "milliseconds": [round(1000 * seconds, 3) for seconds in medians],
        "samples": len(ratios),
    }


def _seconds(count, what, smoke, connected=True):
    """Return the seconds of a step, of the slower process."""
    if smoke:  # one start for all
        return _smoke_seconds()
    return _seconds_of(count, what, "full", connected)


@functools.cache
def _smoke_seconds():
    return _seconds_of(2, "many", "smoke", True)


def _seconds_of(count, what, length, connected):
    command = [sys.executable, "-W", "ignore", "-m", __name__, what]
    command += [str(count if connected else 1), length]
    cores = sorted(os.sched_getaffinity(0))[:count]
    ports = processes.free_ports(count)
    started = [
        subprocess.Popen(
            command,
            env=_environment(rank, ports if connected else ports[:1]),
            preexec_fn=lambda core=core: os.sched_setaffinity(0, [core]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, core in enumerate(cores)
    ]
    for process in started:
        _wait_until_ready(process)
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    return max(json.loads(result.splitlines()[-1]) for result in results)


def _wait_until_ready(process):
    # JAX prints its connections before.
    for line in process.stdout:
        if line == "ready\n":
            return
    raise RuntimeError(f"A process ended early: status {process.wait()}")


def _environment(rank, ports):
    """Return the environment of a process, which finds the others by ports."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if len(ports) > 1:
        own |= processes.variables_of(rank, ports)
    return {**os.environ, **own}


class Deep(keras.layers.Layer):
    """Dense layers whose kernels are one variable, or one variable each."""

    def __init__(self, stacked):
        super().__init__()
        self.stacked = stacked

    def build(self, input_shape):
        lead, count = ((LAYERS,), 1) if self.stacked else ((), LAYERS)
        self.kernels = [
            self.add_weight((*lead, WIDTH, WIDTH)) for _ in range(count)
        ]
        self.biases = [self.add_weight((*lead, WIDTH)) for _ in range(count)]

    def call(self, x):
        kernels, biases = self.kernels, self.biases
        if self.stacked:
            kernels, biases = kernels[0], biases[0]
        for index in range(LAYERS):
            x = ops.tanh(ops.matmul(x, kernels[index]) + biases[index])
        return x


def _models(what, smoke):
    """Return a teacher, a student and the shape of their inputs."""
    if what == "cnn":
        pair = models.pairs(smoke)["cnn"]
        return pair.teacher(), pair.student(), (pair.size, pair.size, 3)
    teacher = keras.Sequential([keras.Input((WIDTH,)), Deep(what == "few")])
    student = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.Dense(WIDTH)]
    )
    return teacher, student, (WIDTH,)


def _connect(count):
    """Return the context in which to build models."""
    backend = keras.backend.backend()
    if backend == "tensorflow" and count > 1:
        import tensorflow as tf

        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    if backend == "jax" and count > 1:
        keras.distribution.initialize()
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    if backend == "torch" and count > 1:
        import torch

        torch.distributed.init_process_group("gloo")
    return keras.name_scope("benchmark")


def _train(what, count, smoke):
    """Print the median seconds of a step, when the parent says go."""
    steps, fits = (1, 1) if smoke else (STEPS, FITS)
    with _connect(count):
        keras.utils.set_random_seed(0)
        teacher, student, shape = _models(what, smoke)
        distiller = Distiller(student=student, teacher=teacher)
        distiller.compile("adam")
    # On TensorFlow, each process gets the data of all.
    share = count if keras.backend.backend() == "tensorflow" else 1
    x = np.random.default_rng(0).normal(size=(BATCH * share * steps, *shape))
    x = x.astype("float32")

    def fit():
        start = time.perf_counter()
        distiller.fit(x, batch_size=BATCH * share, verbose=0)
        return (time.perf_counter() - start) / steps

    fit()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(statistics.median(fit() for _ in range(fits))), flush=True)
    if keras.backend.backend() == "torch" and count > 1:
        import torch

        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _train(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "smoke")
