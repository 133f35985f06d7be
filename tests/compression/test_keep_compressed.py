"""Zeros and shared values are kept in further training."""

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter
from common import BACKEND
from common import StopAfterTwoEpochs
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers

from keras_distill import Distiller
from keras_distill.compression import KeepCompressed
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing
from keras_distill.compression import export_litert
from keras_distill.compression import fold_batch_norm
from keras_distill.compression import pack
from keras_distill.compression import quantize_aware
from keras_distill.compression import unpack

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def kernels_of(model):
    return [
        to_numpy(w.value) for w in model.weights if w.name.endswith("kernel")
    ]


def adamw():
    return keras.optimizers.AdamW(0.01, weight_decay=0.1)


def train(model, x, y, *callbacks, optimizer=None, **options):
    if optimizer or not model.compiled:
        model.compile(optimizer or adamw(), LOSS)
    options = dict(batch_size=8, verbose=0) | options
    model.fit(x, y, callbacks=list(callbacks), **options)
    return model


def pruned(x, y, model=None, share=0.6):
    model = mlp(16) if model is None else model
    return train(model, x, y, MagnitudePruning(share, end_step=2))


def shared(x, y, model=None):
    return train(pruned(x, y, model), x, y, WeightSharing(4))


def patterns(kernels):
    """Return which entries of each kernel are equal, zero first."""
    found = []
    for kernel in kernels:
        values = np.unique(kernel[kernel != 0])
        found.append(np.where(kernel, np.searchsorted(values, kernel) + 1, 0))
    return found


def same_groups(first, second):
    """Return whether entries are equal in one where they are in the other."""
    pairs = len(np.unique(np.stack([first.ravel(), second.ravel()]), axis=1).T)
    return pairs == len(np.unique(first)) == len(np.unique(second))


class Watch(keras.callbacks.Callback):
    """Records after each batch whether zeros were lost, and what changed."""

    def __init__(self, model):
        super().__init__()
        self.student, self.first = model, kernels_of(model)
        self.moved = 0.0

    def on_train_batch_end(self, batch, logs=None):
        _ = self.model  # On JAX, this is when variables get their values.
        for kernel, first in zip(kernels_of(self.student), self.first):
            assert not np.any(kernel[first == 0].view("uint32"))
            self.moved = max(self.moved, np.abs(kernel - first).max())


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.01, 0.9, weight_decay=1e-2),
    "adamw": adamw,
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "overwrite": lambda: keras.optimizers.Adam(
        0.01, use_ema=True, ema_overwrite_frequency=2
    ),
    "accumulate": lambda: keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01, clipnorm=1.0)
    ),
    "muon": lambda: keras.optimizers.Muon(0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [pruned, shared])
def test_what_was_made_is_kept_in_every_step(make, optimizer):
    x, y = vectors(64)
    model = make(x, y)
    before = patterns(kernels_of(model))
    watch = Watch(model)
    model.compile(
        OPTIMIZERS[optimizer](),
        LOSS,
        jit_compile=True if BACKEND == "tensorflow" else "auto",
        steps_per_execution=1 if BACKEND == "torch" else 4,
    )
    train(model, x, y, KeepCompressed(), watch, epochs=2)
    assert watch.moved > 1e-3
    for old, kernel in zip(before, kernels_of(model)):
        assert np.count_nonzero(kernel == 0) == np.count_nonzero(old == 0) > 0
        assert len(np.unique(kernel)) == (
            5 if make is shared else old.max() + 1
        )
        assert same_groups(old, kernel)
    assert "apply" not in vars(model.optimizer)


# Warnings of `torch.compile` are ignored.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(BACKEND != "torch", reason="the tests above compile")
def test_steps_that_pytorch_compiles():
    x, y = vectors(32)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    shared(x, y, model)
    (before,) = patterns(kernels_of(model))
    model.compile(keras.optimizers.SGD(0.001, 0.9), LOSS, jit_compile=True)
    watch = Watch(model)
    train(model, x, y, KeepCompressed(), watch)
    assert watch.moved > 0
    assert same_groups(before, kernels_of(model)[0])


def test_one_step_of_sgd_is_that_of_what_is_free():
    x, y = vectors(16)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, use_bias=False)]
    )
    kernel = np.linspace(-1, 1, 30).reshape(6, 5).astype("float32")
    kernel[np.abs(kernel) < 0.5] = 0
    rate = 0.1
    exact = kernel.astype("float64")
    logits = x @ exact
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = x.T @ (probabilities - np.eye(5)[y]) / len(x)

    model.set_weights([kernel])
    sgd = keras.optimizers.SGD(rate)
    train(model, x, y, KeepCompressed(), optimizer=sgd, batch_size=16)
    expected = np.where(exact == 0, 0, exact - rate * gradient)
    np.testing.assert_allclose(kernels_of(model)[0], expected, atol=1e-6)

    kernel[kernel > 0] = 0.75
    exact = kernel.astype("float64")
    logits = x @ exact
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = x.T @ (probabilities - np.eye(5)[y]) / len(x)
    model.set_weights([kernel])
    train(model, x, y, KeepCompressed(), optimizer=sgd, batch_size=16)
    gradient[exact > 0] = gradient[exact > 0].sum()
    expected = np.where(exact == 0, 0, exact - rate * gradient)
    np.testing.assert_allclose(kernels_of(model)[0], expected, atol=1e-6)


WAYS = ["copy", "keras", "weights", "packed"]


@pytest.mark.parametrize("way", WAYS)
def test_between_two_fits_the_model_may_go_anywhere(way, tmp_path):
    x, y = vectors(64)
    model = shared(x, y)
    before = kernels_of(model)
    if way == "copy":
        again = keras.models.clone_model(model)
        again.set_weights(model.get_weights())
    elif way == "keras":
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    elif way == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        again = mlp(16)
        again.load_weights(tmp_path / "model.weights.h5")
    else:
        pack(model, tmp_path / "model.packed")
        again = unpack(tmp_path / "model.packed")
    train(again, x, y, KeepCompressed())
    for old, kernel in zip(before, kernels_of(again)):
        assert same_groups(old, kernel)
        assert not np.array_equal(old, kernel)


def convolutional():
    """A network of layers that `quantize_aware` rounds."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.ReLU(),
            layers.SeparableConv2D(6, 2),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def test_int8_training_keeps_what_the_stages_before_made():
    x, y = images(32, channels=2)
    x /= 255
    model = pruned(x, y, convolutional())
    zeros = [kernel == 0 for kernel in kernels_of(model)]
    model = fold_batch_norm(model)
    train(model, x, y, WeightSharing(6))
    kernels = kernels_of(model)
    aware = quantize_aware(model)
    watch = Watch(aware)
    train(aware, x, y, KeepCompressed(), watch)
    assert watch.moved > 1e-4
    for old, shared_, new in zip(zeros, kernels, kernels_of(aware)):
        np.testing.assert_array_equal(new == 0, old)
        assert same_groups(shared_, new)
    for layer in aware.layers:
        if hasattr(layer, "rounded_kernel"):
            rounded = to_numpy(layer.rounded_kernel())
            assert np.mean(rounded == 0) > 0.5


def int8_kernels(path):
    """Return the kernels of a file, found by their number of entries."""
    reader = interpreter.Interpreter(model_content=path.read_bytes())
    reader.allocate_tensors()
    return {
        tuple(detail["shape"]): reader.get_tensor(detail["index"])
        for detail in reader.get_tensor_details()
        if detail["dtype"] == np.int8 and detail["shape"].prod() > 100
    }


@pytest.mark.parametrize("keep", [True, False])
def test_prune_share_and_train_for_int8(keep, tmp_path):
    x, y = vectors(64, inputs=12)
    model = mlp(64, inputs=12)
    train(model, x, y, MagnitudePruning(0.8, end_step=4))
    train(model, x, y, WeightSharing(6))
    aware = quantize_aware(model)
    train(aware, x, y, *([KeepCompressed()] if keep else []))
    file = tmp_path / "model.tflite"
    export_litert(aware, file, "int8")
    found = int8_kernels(file)
    assert {(64, 12), (5, 64)} <= set(found)
    for shape in ((64, 12), (5, 64)):
        zeros = np.mean(found[shape] == 0)
        if keep:
            assert zeros == pytest.approx(0.8, abs=0.5 / found[shape].size)
        else:
            assert zeros < 0.3


def test_a_folded_normalization_leaves_values_shared_in_each_channel():
    hidden = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(200, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(5),
        ]
    )
    x, y = vectors(32, inputs=64)
    shared(x, y, hidden)
    aware = quantize_aware(hidden)
    before = kernels_of(aware)
    assert len(np.unique(before[0])) > 256
    train(aware, x, y, KeepCompressed())
    for old, kernel in zip(before, kernels_of(aware)):
        assert same_groups(old, kernel)


def test_weights_that_nobody_shared_are_free():
    x, y = vectors(32, inputs=32)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(64),
            layers.BatchNormalization(),
            layers.Dense(
                64, kernel_initializer="ones", bias_initializer="ones"
            ),
            layers.Reshape((8, 8)),
            layers.LSTM(5),
        ]
    )
    first, last = model.layers[0], model.layers[-1].cell
    # In half precision, many values are equal.
    first.kernel.assign(to_numpy(first.kernel.value).astype("float16"))
    assert len(np.unique(to_numpy(first.kernel.value))) < 0.9 * 32 * 64
    last.kernel.assign(to_numpy(last.kernel.value) * (np.arange(20) < 10))
    train(model, x, y, KeepCompressed(), optimizer=keras.optimizers.SGD(1.0))
    for weight in model.trainable_weights:
        values = to_numpy(weight.value)
        if weight is last.kernel:
            assert not np.any(values[:, 10:])
            values = values[:, :10]
        assert len(np.unique(values)) > 0.8 * values.size, weight.path


def test_excluded_layers_are_trained_freely():
    x, y = vectors(32)
    model = shared(x, y)
    names = [layer.name for layer in model.layers]
    train(model, x, y, KeepCompressed(exclude=names[0]))
    first, second = kernels_of(model)
    assert np.all(first)
    assert len(np.unique(second)) == 5


def test_a_kernel_of_zeros_is_held_with_a_warning():
    x, y = vectors(32)
    model = mlp(8)
    model.layers[0].kernel.assign(np.zeros((6, 8)))
    with pytest.warns(
        UserWarning, match=r"keeps the whole kernel '.*kernel'? at zero"
    ):
        train(model, x, y, KeepCompressed())
    assert not np.any(kernels_of(model)[0])
    with pytest.raises(
        ValueError, match="requires a model with zeros or shared values"
    ):
        train(model, x, y, KeepCompressed(exclude=model.layers[0].name))


def test_the_student_of_a_distiller_is_held():
    x, y = vectors(64)
    student = shared(x, y)
    before = kernels_of(student)
    distiller = Distiller(student=student, teacher=mlp(16))
    distiller.compile(adamw())
    distiller.fit(x, y, verbose=0, callbacks=[KeepCompressed()])
    for old, kernel in zip(before, kernels_of(student)):
        assert same_groups(old, kernel)
        assert not np.array_equal(old, kernel)


@pytest.mark.parametrize("backup_first", [True, False])
def test_a_resumed_run_ends_like_one_never_stopped(tmp_path, backup_first):
    x, y = vectors(32)
    weights = shared(x, y).get_weights()

    def run(folder, *more):
        keras.utils.set_random_seed(3)
        model = mlp(16)
        model.set_weights(weights)
        callbacks = [
            keras.callbacks.BackupAndRestore(tmp_path / folder),
            KeepCompressed(),
        ]
        if not backup_first:
            callbacks.reverse()
        options = dict(epochs=4, shuffle=False)
        return train(model, x, y, *callbacks, *more, **options)

    with pytest.raises(InterruptedError):
        run("stopped", StopAfterTwoEpochs())
    resumed, whole = run("stopped"), run("whole")
    assert same_weights(weights_of(resumed), weights_of(whole), 1e-6)
    for old, kernel in zip(weights[::2], kernels_of(whole)):
        assert same_groups(old, kernel)


def test_the_best_weights_of_a_second_fit_are_compressed():
    x, y = vectors(64)
    model = shared(x, y)
    before = kernels_of(model)
    best = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=9, restore_best_weights=True
    )
    train(model, x, y, best, KeepCompressed(), epochs=3)
    for old, kernel in zip(before, kernels_of(model)):
        assert same_groups(old, kernel)


def test_refused():
    x, y = vectors()
    with pytest.raises(ValueError, match=r"without zeros.*without shared"):
        train(mlp(), x, y, KeepCompressed())
    model = pruned(x, y)
    for other in (MagnitudePruning(0.5, end_step=0), WeightSharing(4)):
        for callbacks in ([KeepCompressed(), other], [other, KeepCompressed()]):
            with pytest.raises(ValueError, match="only one of the callbacks"):
                train(model, x, y, *callbacks)
    with pytest.raises(ValueError, match=r"`exclude`.*'dance'.*'dense"):
        train(model, x, y, KeepCompressed(exclude=["dance"]))
    model.compile(None, LOSS)
    with pytest.raises(
        ValueError, match="KeepCompressed requires a model that"
    ):
        train(model, x, y, KeepCompressed())
