"""Warnings if the model has fewer zeros than the schedule requires."""

import re
import warnings

import keras
import numpy as np
import pytest
from common import mlp
from common import to_numpy
from common import vectors

from keras_distill import Distiller
from keras_distill.compression import KeepCompressed
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing

pytestmark = pytest.mark.any_backend

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(optimizer="adam", units=32):
    model = mlp(units)
    model.compile(optimizer, LOSS)
    return model


def kernels_of(model):
    return [to_numpy(layer.kernel.value) for layer in model.layers]


def sparsity(model):
    kernels = kernels_of(model)
    zeros = sum(np.count_nonzero(kernel == 0) for kernel in kernels)
    return zeros / sum(kernel.size for kernel in kernels)


def warnings_of(function):
    """Return the messages of UserWarnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    # TensorFlow and JAX may emit other warnings.
    return [str(w.message) for w in caught if w.category is UserWarning]


class Sparsities(keras.callbacks.Callback):
    """Logs the sparsity, for EarlyStopping to select the smallest."""

    def on_epoch_end(self, epoch, logs=None):
        logs["sparsity"] = sparsity(self.model)
        if epoch == 0:
            self.first = kernels_of(self.model)


def best_is_least_pruned(**options):
    return keras.callbacks.EarlyStopping(
        "sparsity", mode="min", patience=9, restore_best_weights=True, **options
    )


def fit(model, *callbacks, epochs=4, **options):
    x, y = vectors(64)
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )


ORDERS = {
    "pruning first": lambda a, b, c: (a, b, c),
    "pruning last": lambda a, b, c: (b, c, a),
    "before a custom history": lambda a, b, c: (
        a,
        b,
        c,
        keras.callbacks.History(),
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_weights_put_back_from_before_the_end(order):
    model = compiled()
    pruning = MagnitudePruning(0.8, end_step=20)
    # After 8 of 20 steps.
    message = (
        r"`final_sparsity`, 80\.0%.*reached 80\.0%.*start_from_epoch=2`.*"
        "KeepCompressed"
    )
    watch = Sparsities()
    callbacks = ORDERS[order](pruning, watch, best_is_least_pruned())
    warned = warnings_of(lambda: fit(model, *callbacks))
    assert len(warned) == 1 and re.search(message, warned[0])
    share = sparsity(model)
    assert f" {share:.1%} of the kernel weights" in warned[0]
    assert 0.5 < share < 0.75
    # The restored weights are the best ones.
    for kernel, expected in zip(kernels_of(model), watch.first):
        np.testing.assert_array_equal(kernel, expected)


def test_the_way_that_the_warning_names():
    model = compiled()
    best = best_is_least_pruned(start_from_epoch=2)
    fit(model, MagnitudePruning(0.8, end_step=20), Sparsities(), best)
    assert best.best_epoch == 2
    assert sparsity(model) == pytest.approx(0.8, abs=0.01)


def test_the_best_of_a_second_fit(tmp_path):
    model = compiled()
    fit(model, MagnitudePruning(0.8, end_step=20))
    zeros = [kernel == 0 for kernel in kernels_of(model)]
    file = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras",
        monitor="loss",
        mode="max",
        save_best_only=True,
    )
    best = best_is_least_pruned()
    fit(model, KeepCompressed(), Sparsities(), best, file)
    for found in (model, keras.models.load_model(tmp_path / "best.keras")):
        for kernel, expected in zip(kernels_of(found), zeros):
            np.testing.assert_array_equal(kernel == 0, expected)


def test_a_training_that_ends_before_its_schedule():
    model = compiled()
    message = r"MagnitudePruning.*80\.0%.*ended after 32 steps.*end_step=50"
    pruning = MagnitudePruning(0.8, end_step=50)
    warned = warnings_of(lambda: fit(model, pruning))
    assert len(warned) == 1 and re.search(message, warned[0])
    assert f"{sparsity(model):.1%} of the kernel weights" in warned[0]
    # Continue the schedule.
    fit(model, MagnitudePruning(0.8, end_step=50), initial_epoch=4, epochs=7)
    assert sparsity(model) == pytest.approx(0.8, abs=0.01)


def test_a_training_that_is_stopped_early():
    model = compiled()
    stop = keras.callbacks.EarlyStopping(
        "sparsity", mode="min", patience=1, restore_best_weights=True
    )
    with pytest.warns(UserWarning, match="restored weights from an earlier"):
        fit(model, MagnitudePruning(0.8, end_step=30), Sparsities(), stop)
    assert stop.stopped_epoch == 1


def test_under_a_distiller():
    x, y = vectors(64)
    student = mlp(32)
    distiller = Distiller(student=student, teacher=mlp(32))
    distiller.compile("adam")
    best = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=9, restore_best_weights=True
    )

    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["loss"] = -epoch

    pruning = MagnitudePruning(0.8, end_step=20)
    callbacks = [pruning, Worse(), best]
    with pytest.warns(UserWarning, match="restored weights"):
        distiller.fit(
            x, y, batch_size=8, epochs=4, verbose=0, callbacks=callbacks
        )


@pytest.mark.parametrize("last", [True, False])
def test_shared_weights_that_are_put_back_are_shared(last):
    model = compiled(keras.optimizers.Adam(1e-4))
    fit(model, MagnitudePruning(0.8, end_step=20))
    best = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=9, restore_best_weights=True
    )
    callbacks = [WeightSharing(4), best]
    fit(model, *(callbacks if last else callbacks[::-1]))
    for kernel in kernels_of(model):
        assert 2 < len(np.unique(kernel)) <= 5


@pytest.mark.parametrize(
    "pruning, message",
    [
        (
            dict(end_step=20),
            r"begins with 0\.0.*have 80\..*initial_sparsity=0.8",
        ),
        (dict(end_step=20, begin_step=9), r"begins with 0\.0.*have 80\."),
        (dict(end_step=20, initial_sparsity=0.5), r"begins with 50\.0.*80\."),
        (dict(end_step=20, initial_sparsity=0.8), None),
        (dict(end_step=0), None),
    ],
)
def test_a_second_schedule_that_begins_with_fewer_zeros(pruning, message):
    model = compiled()
    fit(model, MagnitudePruning(0.8, end_step=20))
    zeros = [kernel == 0 for kernel in kernels_of(model)]
    again = MagnitudePruning(0.9, **pruning)
    if message:
        with pytest.warns(UserWarning, match=message):
            fit(model, again)
    else:
        fit(model, again)
        for kernel, old in zip(kernels_of(model), zeros):
            assert not np.any(kernel[old])
    assert sparsity(model) == pytest.approx(0.9, abs=0.01)


class Validation(keras.callbacks.Callback):
    """Records the weights in validation and at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_test_begin(self, logs=None):
        self.seen.append(kernels_of(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(kernels_of(self.model))


@pytest.mark.parametrize("swap_first", [True, False])
@pytest.mark.parametrize("swap_on_epoch", [True, False])
@pytest.mark.parametrize("kind", ["pruning", "sharing", "keeping"])
def test_averages_of_weights_have_the_same_zeros(
    kind, swap_on_epoch, swap_first
):
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    model = compiled(optimizer, units=8)
    if kind != "pruning":
        model.set_weights([w * (np.abs(w) > 0.2) for w in model.get_weights()])
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch),
        {
            "pruning": MagnitudePruning(0.8, end_step=14),
            "sharing": WeightSharing(4),
            "keeping": KeepCompressed(),
        }[kind],
    ]
    zeros = [np.mean(kernel == 0) for kernel in kernels_of(model)]
    watch = Validation()
    callbacks = callbacks if swap_first else callbacks[::-1]
    fit(model, *callbacks, watch, validation_data=vectors(16))
    seen = watch.seen[4 if kind == "pruning" else 0 :]
    for kernels in [*seen, kernels_of(model)]:
        for kernel, share in zip(kernels, zeros):
            share = 0.8 if kind == "pruning" else share
            assert np.mean(kernel == 0) == pytest.approx(share, abs=0.5 / 40)
            if kind == "sharing":
                assert 2 < len(np.unique(kernel)) <= 5
