"""Clusters are trained as one value, with the sum of their gradients."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import StopAfterTwoEpochs
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of

from keras_distill import Distiller
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def kernels_of(model):
    return [
        to_numpy(w.value) for w in model.weights if w.name.endswith("kernel")
    ]


def reference_clusters(values, number):
    """Lloyd's algorithm as in textbooks."""
    centroids = np.linspace(values.min(), values.max(), number)
    for _ in range(1000):
        distances = np.abs(values[:, np.newaxis] - centroids)
        nearest = distances.argmin(1)
        new = centroids.copy()
        for k in range(number):
            if np.any(nearest == k):
                new[k] = values[nearest == k].mean()
        if np.array_equal(new, centroids):
            break
        centroids = new
    return centroids[nearest]


def test_one_step_of_sgd_is_the_papers():
    x, y = vectors(16, seed=1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, use_bias=False)]
    )
    rate = 0.02
    model.compile(keras.optimizers.SGD(rate), LOSS)
    kernel = kernels_of(model)[0].astype("float64")
    kernel[np.abs(kernel) < 0.2] = 0
    model.set_weights([kernel])
    shared = kernel.copy()
    shared[kernel != 0] = reference_clusters(kernel[kernel != 0], 4)
    logits = x @ shared
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = x.T @ (probabilities - np.eye(5)[y]) / len(x)
    expected = shared.copy()
    for value in np.unique(shared[shared != 0]):
        members = shared == value
        expected[members] -= rate * gradient[members].sum()

    model.fit(x, y, batch_size=16, verbose=0, callbacks=[WeightSharing(4)])
    np.testing.assert_allclose(kernels_of(model)[0], expected, atol=1e-6)


class Watch(keras.callbacks.Callback):
    """Records the maximum number of distinct values after a batch."""

    def __init__(self):
        super().__init__()
        self.distinct, self.values = 0, set()

    def on_train_batch_end(self, batch, logs=None):
        kernels = kernels_of(self.model)
        counts = [len(np.unique(kernel)) for kernel in kernels]
        self.distinct = max(self.distinct, *counts)
        self.values.add(float(kernels[0].max()))


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.001, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "accumulate": lambda: keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01)
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_members_stay_equal_to_the_bit_and_move(optimizer):
    x, y = vectors(64)
    model = mlp(16)
    model.compile(
        OPTIMIZERS[optimizer](),
        LOSS,
        jit_compile=True if BACKEND == "tensorflow" else "auto",
        steps_per_execution=1 if BACKEND == "torch" else 4,
    )
    # On JAX, Keras cannot train twice with `use_ema`: it donates twice.
    if optimizer != "average":
        model.fit(x, y, batch_size=8, verbose=0)  # each its own momentum
    watch = Watch()
    model.fit(
        x, y, batch_size=8, verbose=0, callbacks=[WeightSharing(4), watch]
    )
    assert watch.distinct == 4
    # With accumulation, weights change after every second step.
    moves = 5 if optimizer == "accumulate" else 8
    assert len(watch.values) == (moves if BACKEND == "torch" else 2)
    for kernel in kernels_of(model):
        assert len(np.unique(kernel)) == 4
    assert "apply" not in vars(model.optimizer)


# Warnings of `torch.compile` are ignored.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(BACKEND != "torch", reason="the tests above compile")
def test_members_stay_equal_in_steps_that_pytorch_compiles():
    x, y = vectors(32)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    optimizer = keras.optimizers.SGD(0.001, momentum=0.9)
    model.compile(optimizer, LOSS, jit_compile=True)
    watch = Watch()
    model.fit(
        x, y, batch_size=8, verbose=0, callbacks=[WeightSharing(4), watch]
    )
    assert watch.distinct == 4
    assert len(watch.values) == 4


def test_pruned_weights_stay_zero():
    x, y = vectors(64)
    model = mlp(16)
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1), LOSS)
    pruning = MagnitudePruning(0.6, end_step=4)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[pruning])
    zeros = [kernel == 0 for kernel in kernels_of(model)]
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[WeightSharing(4)])
    for kernel, pruned in zip(kernels_of(model), zeros):
        np.testing.assert_array_equal(kernel == 0, pruned)
        assert not np.signbit(kernel[pruned]).any()
        assert len(np.unique(kernel)) == 5


def test_numbers_by_layer_type_and_weight():
    x, y = images()
    model = cnn(8)
    model.add(keras.layers.Dense(5, name="last"))
    model.compile("adam", LOSS)
    for layer in model.layers:
        if hasattr(layer, "bias"):  # They begin as zeros, which stay.
            layer.bias.assign(np.linspace(1, 2, layer.bias.shape[0]))
    numbers = {"Dense": 6, "last": 3, "bias": 2}
    model.fit(x, y, verbose=0, callbacks=[WeightSharing(numbers)])
    distinct = {
        w.path.split("/", 1)[1]: len(np.unique(to_numpy(w.value)))
        for w in model.trainable_weights
        if w.name in ("kernel", "bias")
    }
    assert distinct == {
        "conv2d/kernel": 72,
        "conv2d/bias": 2,
        "dense/kernel": 6,
        "dense/bias": 2,
        "last/kernel": 3,
        "last/bias": 2,
    }


def test_few_values_stay_as_they_are():
    x, y = vectors()
    model = mlp(4)
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    model.fit(x, y, verbose=0, callbacks=[WeightSharing(4)])
    before = weights_of(model)
    model.fit(x, y, verbose=0, callbacks=[WeightSharing(4)])
    assert same_weights(weights_of(model), before)


def test_a_resumed_run_ends_like_one_never_stopped(tmp_path):
    x, y = vectors(32)

    def run(folder, *more):
        keras.utils.set_random_seed(3)
        model = mlp(8)
        model.compile(keras.optimizers.Adam(0.01), LOSS)
        callbacks = [
            WeightSharing(4),
            keras.callbacks.BackupAndRestore(tmp_path / folder),
            *more,
        ]
        arguments = dict(batch_size=8, epochs=3, shuffle=False, verbose=0)
        model.fit(x, y, callbacks=callbacks, **arguments)
        return model

    with pytest.raises(InterruptedError):
        run("stopped", StopAfterTwoEpochs())
    resumed, whole = run("stopped"), run("whole")
    assert same_weights(weights_of(resumed), weights_of(whole), 1e-6)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_fit_without_an_epoch_changes_nothing(epochs):
    x, y = vectors()
    model = mlp(8)
    model.compile("adam", LOSS)
    before = weights_of(model)
    model.fit(
        x,
        y,
        epochs=epochs,
        initial_epoch=epochs,
        verbose=0,
        callbacks=[WeightSharing(4)],
    )
    assert same_weights(weights_of(model), before)
    assert "apply" not in vars(model.optimizer)


class StopAtTheEnd(keras.callbacks.Callback):
    """Interrupts a `fit()` between its last epoch and `on_train_end`."""

    def on_train_end(self, logs=None):
        raise InterruptedError


@pytest.mark.parametrize("backup_first", [True, False])
def test_a_run_stopped_after_its_last_epoch(tmp_path, backup_first):
    x, y = vectors(32)

    def run(*more):
        model = mlp(8)
        model.compile(keras.optimizers.Adam(0.01), LOSS)
        callbacks = [
            WeightSharing(4),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        ]
        if backup_first:
            callbacks.reverse()
        callbacks = [*more, *callbacks]
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
        return model

    trained = []
    stop = StopAtTheEnd()
    stop.on_epoch_end = lambda *_: trained.append(weights_of(stop.model))
    with pytest.raises(InterruptedError):
        run(stop)
    resumed = run()
    for weight, last in zip(resumed.weights, trained[-1]):
        np.testing.assert_array_equal(to_numpy(weight.value), last)
    assert all(len(np.unique(kernel)) == 4 for kernel in kernels_of(resumed))


def test_the_student_of_a_distiller_is_shared():
    x, y = vectors()
    distiller = Distiller(student=mlp(8), teacher=mlp(16))
    distiller.compile("adam")
    distiller.fit(x, y, verbose=0, callbacks=[WeightSharing(4)])
    assert all(len(np.unique(k)) == 4 for k in kernels_of(distiller.student))


@pytest.mark.parametrize("number", [1, 257, 2.5, {"Dense": 0}])
def test_wrong_numbers_are_refused(number):
    with pytest.raises(ValueError, match="`num_clusters` must be"):
        WeightSharing(number)


def test_unknown_keys_are_refused():
    x, y = vectors()
    model = mlp()
    model.compile("sgd", LOSS)
    sharing = WeightSharing({"Dense": 4, "Conv2D": 8})
    with pytest.raises(ValueError, match=r"\['Conv2D'\].*'dense'"):
        model.fit(x, y, verbose=0, callbacks=[sharing])


def test_models_that_are_not_ready_are_refused():
    x, y = vectors()
    model = mlp()
    model.compile(None, LOSS)
    message = "WeightSharing requires a model that is compiled with an optim"
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0, callbacks=[WeightSharing(4)])
    raw = keras.Sequential([keras.layers.Dense(2)], name="raw")
    raw.compile("sgd", LOSS)
    sharing = WeightSharing(4)
    sharing.set_model(raw)
    message = "WeightSharing requires a model that is built .*'raw', which has"
    with pytest.raises(ValueError, match=message):
        sharing.on_train_begin()
