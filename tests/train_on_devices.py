"""The program that `test_devices.py` starts: 24 steps on the devices it names.

    python train_on_devices.py OUT ENGINE-DEVICES,... [--kill] [--resume]
        [--replay FOLDER]

Each process writes the student's weights and logs to `OUT/ENGINE-RANK.npz`.
With `--replay`, it also trains from the recording in FOLDER that fits. The
engine `one-1` writes these recordings to OUT.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys

import torch  # before TensorFlow  # isort: skip
import keras
import numpy as np
import pytest
from common import BACKEND
from common import images
from common import to_numpy
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import Hint
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import Resume
from keras_distill import TeacherAgreement
from keras_distill import record_teacher
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing

BATCH, BATCHES, EPOCHS = 16, 6, 4


def network(width, name):
    """A model of two outputs, with a penalty on its first kernel."""
    inputs = keras.Input((8, 8, 1))
    penalty = keras.regularizers.L2(0.01)
    hidden = layers.Conv2D(
        width, 3, kernel_regularizer=penalty, name=f"{name}_conv"
    )(inputs)
    hidden = layers.GlobalAveragePooling2D()(hidden)
    classes = layers.Dense(5, name=f"{name}_classes")(hidden)
    value = layers.Dense(1, name=f"{name}_value")(hidden)
    return keras.Model(inputs, {"classes": classes, "value": value})


def start(engine):
    """Start an engine; return `(rank, processes, scope)` of this process."""
    scope = contextlib.nullcontext
    if engine == "torchrun-1":
        torch.distributed.init_process_group("gloo")
        return (
            torch.distributed.get_rank(),
            torch.distributed.get_world_size(),
            scope,
        )
    if BACKEND == "tensorflow":
        import tensorflow as tf

        if engine == "workers-1":
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
            task = json.loads(os.environ["TF_CONFIG"])["task"]
            return task["index"], 1, strategy.scope
        if engine.startswith("mirrored"):
            count = int(engine[-1])
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * 4,
            )
            names = [f"CPU:{i}" for i in range(count)]
            scope = tf.distribute.MirroredStrategy(names).scope
    rank, processes = 0, 1
    if BACKEND == "jax" and engine != "one-1":
        import jax

        if engine == "processes-1":
            connect()

        rank, processes = jax.process_index(), jax.process_count()
        distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        if engine.startswith("model"):
            mesh = keras.distribution.DeviceMesh(
                (2, 2), ("batch", "model"), keras.distribution.list_devices()
            )
            layout = keras.distribution.LayoutMap(mesh)
            layout["teacher_conv/kernel"] = (None, None, None, "model")
            layout["teacher_conv/bias"] = ("model",)
            layout["teacher_.*/kernel"] = ("model", None)
            distribution = keras.distribution.ModelParallel(
                layout_map=layout,
                batch_dim_name="batch",
                auto_shard_dataset=False,
            )
        keras.distribution.set_distribution(distribution)
    return rank, processes, scope


def connect():
    """Connect two processes of JAX."""
    if "--kill" not in sys.argv:
        keras.distribution.initialize()
        return
    import jax

    # With Keras's function it takes JAX 100 seconds to notice.
    keras.utils.set_random_seed(2)
    jax.distributed.initialize(
        os.environ["KERAS_DISTRIBUTION_JOB_ADDRESSES"],
        num_processes=2,
        process_id=int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"]),
        heartbeat_timeout_seconds=20,
    )


def share(array, rank, processes):
    """Return the part of each batch that a process of `torchrun` reads."""
    parts = array.reshape(-1, processes, BATCH // processes, *array.shape[1:])
    return parts[:, rank % processes].reshape(-1, *array.shape[1:])


def views_of_replay():
    return ConsistentAugment(
        [InceptionCrop(8, 8), layers.RandomCrop(8, 8), MixUp()], seed=5
    )


def simple(width):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(width, "relu"),
            layers.Dense(5),
        ]
    )


def record_and_train(folder, x):
    """Record for several replicas, and train on the views that were recorded.

    Returns:
        dict of arrays by name, what `replayed` must return.
    """
    results = {}
    keras.utils.set_random_seed(4)
    teacher = simple(8)
    for replicas in (1, 2, 4):
        augment = views_of_replay()
        recording = record_teacher(
            teacher,
            x,
            folder / f"for-{replicas}",
            augment=augment,
            epochs=2,
            batch_size=BATCH,
            replicas=replicas,
            storage_dtype="float32",
            verbose=0,
        )
        seen = []
        for epoch in range(2):
            for batch in range(recording.num_batches):
                rows = recording.rows(epoch, batch)
                for part in np.split(rows, replicas):
                    drawn = recording.drawn_in(part)
                    seen.append(augment.draw(x[part["sample"]], drawn)[0])
        seen = np.concatenate([*map(to_numpy, seen)])
        keras.utils.set_random_seed(5)
        distiller = Distiller(student=simple(4), teacher=teacher)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        losses = [
            distiller.fit(
                part, batch_size=BATCH, shuffle=False, verbose=0
            ).history["loss"][0]
            for part in np.split(seen, 2)
        ]
        results |= named(replicas, distiller.student, losses)
    return results


def replayed(folder, x, scope, replicas):
    """Train from the recording for a number of replicas."""
    with scope():
        keras.utils.set_random_seed(5)
        student = simple(4)
        distiller = Distiller(
            student=student,
            teacher=RecordedTeacher(folder / f"for-{replicas}"),
            augment=views_of_replay(),
        )
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    logs = distiller.fit(x, epochs=2, verbose=0).history
    return named(replicas, student, logs["loss"])


def compressed(x, scope, batch_size):
    """Train with zeros, and with shared values."""
    results = {}
    for callback in (MagnitudePruning(0.5, end_step=3), WeightSharing(3)):
        with scope():
            keras.utils.set_random_seed(6)
            student, teacher = simple(4), simple(8)
            distiller = Distiller(student=student, teacher=teacher)
            distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        distiller.fit(
            x,
            batch_size=batch_size,
            shuffle=False,
            callbacks=[callback],
            verbose=0,
        )
        for weight in student.weights:
            results[f"compressed_{len(results)}"] = to_numpy(weight.value)
    return results


def replicas_of(engine):
    """Return into how many parts an engine divides a batch."""
    name, devices = engine.split("-")
    if BACKEND == "jax":
        return 1
    return int(devices) if name == "mirrored" else 2


def named(replicas, student, losses):
    arrays = [np.array(losses), *map(to_numpy, student.weights)]
    return {f"replay_{replicas}_{i}": array for i, array in enumerate(arrays)}


class Kill(keras.callbacks.Callback):
    """Kills its process after some batches."""

    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == 9:
            os.kill(os.getpid(), signal.SIGKILL)


def main(out, engine, *options):
    rank, processes, scope = start(engine)
    views = [InceptionCrop(8, 8), MixUp()]
    if BACKEND != "jax":
        # Each replica draws views of its own: the only possible crop is equal.
        views = [InceptionCrop(8, 8, (1.0, 1.0), (1.0, 1.0))]
    with scope():
        keras.utils.set_random_seed(2)
        teacher = network(8, "teacher")
        if engine == "torchrun-1":
            # The student of process 0 counts.
            keras.utils.set_random_seed(3 + rank)
        else:
            keras.utils.set_random_seed(3)
        student = network(2, "student")
        distiller = Distiller(
            student=student,
            teacher=teacher,
            augment=ConsistentAugment(views, seed=3),
            hints=[Hint("teacher_conv", "student_conv")],
        )
        distiller.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            # A function as loss: Keras's own distiller doubles its gradient.
            {
                "classes": ClassicKD(
                    keras.optimizers.schedules.CosineDecay(0.9, 24)
                ),
                "value": keras.losses.mean_squared_error,
            },
            metrics={"classes": ["accuracy", TeacherAgreement()]},
            log_schedules=True,
        )
    x, y = images(BATCH * BATCHES, size=10)
    x /= 255
    labels = {"classes": y, "value": x.mean((1, 2))}
    data = keras.tree.map_structure(
        lambda array: share(array, rank, processes), (x, labels)
    )
    view = (data[0][:, :8, :8], data[1])
    callbacks = [Kill()] if "--kill" in options and rank == 1 else []
    if "--kill" in options or "--resume" in options:
        callbacks.append(Resume(pathlib.Path(out) / "run", save_freq=4))
    history = distiller.fit(
        *data,
        batch_size=BATCH // processes,
        epochs=EPOCHS,
        shuffle=False,
        validation_data=view,
        callbacks=callbacks,
        verbose=0,
    ).history
    if "--kill" not in options:
        history |= compressed(view[0], scope, BATCH // processes)
    if engine == "one-1":
        history |= record_and_train(pathlib.Path(out), x)
    elif "--replay" in options:
        replicas = replicas_of(engine)
        if replicas > 1:
            with pytest.raises(ValueError, match=f"divided into {replicas} p"):
                replayed(pathlib.Path(options[-1]), x, scope, 1)
        history |= replayed(pathlib.Path(options[-1]), x, scope, replicas)
    np.savez(
        pathlib.Path(out) / f"{engine}-{rank}.npz",
        *[to_numpy(weight.value) for weight in student.weights],
        **history,
    )


if __name__ == "__main__":
    out, engines, *options = sys.argv[1:]
    for engine in engines.split(","):
        main(out, engine, *options)
