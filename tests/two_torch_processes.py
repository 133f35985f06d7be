"""The program that `test_devices.py` starts twice: what processes share.

Each check runs in both processes at the same time. Those that compare with one
process do its part first, before the processes are connected.
"""

import os

import torch  # before TensorFlow  # isort: skip
import keras
import numpy as np
import pytest
from common import cnn
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from keras import layers
from torch import distributed

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import MixUp
from keras_distill.compression import MagnitudePruning


def distiller_of(student, teacher, optimizer=None, **arguments):
    distiller = Distiller(student=student, teacher=teacher, **arguments)
    distiller.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9))
    return distiller


def of_all(values):
    """Return an array with the values of both processes."""
    values = torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64)
    both = [torch.zeros_like(values) for _ in range(2)]
    distributed.all_gather(both, values)
    return np.stack([each.numpy() for each in both])


def same(values):
    """Return whether values are the same in both processes."""
    one, two = of_all(values)
    return np.array_equal(one, two)


def models(student_seed=1):
    keras.utils.set_random_seed(5)
    teacher = mlp(16)
    keras.utils.set_random_seed(student_seed)
    return mlp(4), teacher


def statistics_of(student):
    return [to_numpy(v.value) for v in student.non_trainable_weights]


X, _ = vectors(24)
IMAGES, _ = images(16)


def fit_in_uneven_batches(rows):
    """Fit batches of 8, of which the processes read 5 and 3."""
    student, teacher = models()
    distiller = distiller_of(student, teacher)
    x = X.reshape(3, 8, 6)[:, rows].reshape(-1, 6)
    size = len(x) // 3
    logs = distiller.fit(x, batch_size=size, shuffle=False, epochs=8, verbose=0)
    return [*student.get_weights(), *logs.history["loss"]]


def fit_with_batch_norm(rows):
    """Return what one step leaves in the statistics of BatchNormalization."""
    keras.utils.set_random_seed(5)
    teacher, student = cnn(4), cnn(2)
    distiller = distiller_of(student, teacher)
    distiller.fit(IMAGES[rows], batch_size=16, verbose=0)
    return statistics_of(student)


def check_uneven_shares(expected, rank):
    received = fit_in_uneven_batches(slice(0, 5) if rank == 0 else slice(5, 8))
    for one, two in zip(expected, received, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


def check_batch_norm(expected, rank):
    mean, variance = fit_with_batch_norm(slice(rank, None, 2))
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4)
    assert np.abs(variance - expected[1]).max() > 0
    assert same(mean) and same(variance)


def check_numbers_of_batches(rank):
    distiller = distiller_of(*models())
    with pytest.raises(ValueError, match=r"Received: \[2, 3\] batches"):
        distiller.fit(X[: 16 + 8 * rank], batch_size=8, verbose=0)

    def batches(count):
        for _ in range(count):
            yield (X[:8],)

    found = r"process 0 at 'end', after 2 .* process 1 at 'train_step', after 2"
    with pytest.raises(RuntimeError, match=found):
        distiller.fit(batches(2 + rank), verbose=0)


def check_teachers(rank):
    student, _ = models()
    keras.utils.set_random_seed(rank)
    distiller = distiller_of(student, mlp(16))
    with pytest.raises(ValueError, match="must have the same teacher"):
        distiller.fit(X, verbose=0)


def check_values(rank):
    """A row of process 1 stops both."""
    student, teacher = models()
    x = np.array(X)
    if rank == 1:
        x[9] = np.nan
    distiller = distiller_of(student, teacher)
    with pytest.raises(ValueError, match="infinity for 1 rows of batch 1"):
        distiller.fit(x, batch_size=8, shuffle=False, verbose=0)


def check_random_numbers(rank):
    """The processes draw different views and masks; checkpoints are equal."""
    seen = []

    class Look(layers.Layer):
        def call(self, inputs):
            if not inputs.is_meta:
                seen.append(inputs.detach().numpy())
            return inputs

    keras.utils.set_random_seed(5)
    view = keras.Input((8, 8, 1))
    hidden = Look()(layers.Dropout(0.5)(Look()(view)))
    student = keras.Model(view, layers.Dense(5)(layers.Flatten()(hidden)))
    augment = ConsistentAugment(MixUp(), seed=3)
    distiller = distiller_of(student, cnn(4), augment=augment)
    for _ in range(2):
        distiller.fit(IMAGES / 255, batch_size=16, verbose=0)
    views, dropped = seen[0::2], [after == 0 for after in seen[1::2]]
    for values in (*views, *dropped):
        assert not same(values)
    assert all(map(same, student.get_weights()))
    one, two = of_all(to_numpy(augment.seed_generator.state.value))
    assert one[1] == two[1] > 0 and one[0] == 3 != two[0]


def check_callbacks(rank):
    """The processes stop at the same epoch, and prune the same weights."""
    student, teacher = models(student_seed=rank)
    distiller = distiller_of(student, teacher, keras.optimizers.SGD(3.0))
    x = X[rank::2] * (1 + rank)
    history = distiller.fit(
        x,
        validation_data=(x,),
        epochs=6,
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss"),
            MagnitudePruning(0.5, begin_step=0, end_step=2),
        ],
        verbose=0,
    ).history
    assert all(map(same, (history["loss"], history["val_loss"])))
    assert all(map(same, student.get_weights()))
    assert np.mean(student.get_weights()[0] == 0) == 0.5
    assert same([distiller.evaluate(x, verbose=0)])


def main():
    # Without it, each process is on its own.
    world_size = os.environ.pop("WORLD_SIZE")
    uneven = fit_in_uneven_batches(slice(None))
    batch_norm = fit_with_batch_norm(slice(None))
    os.environ["WORLD_SIZE"] = world_size
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    check_uneven_shares(uneven, rank)
    check_batch_norm(batch_norm, rank)
    for check in (
        check_numbers_of_batches,
        check_teachers,
        check_values,
        check_random_numbers,
        check_callbacks,
    ):
        check(rank)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
