"""What pruning and weight sharing add to a training step."""

import keras
import numpy as np

from benchmarks import loops
from benchmarks import models
from benchmarks import setups
from benchmarks.timing import compare
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing

CALLBACKS = {
    "MagnitudePruning": (lambda: MagnitudePruning(0.9, end_step=0), 1.10),
    "WeightSharing": (lambda: WeightSharing(16), None),
}


def compression(smoke):
    """A step that keeps zeros or clusters, against the plain one.

    The zeros and the clusters were chosen before.
    """
    pairs = models.pairs(smoke)
    networks = {
        "CNN (256, 512)": (pairs["cnn"], pairs["cnn"].teacher),
        "ResNet-20": (pairs["resnet"], pairs["resnet"].student),
    }
    rows = []
    for name, (callback, goal) in CALLBACKS.items():
        for title, (pair, network) in networks.items():
            measured = compare(
                lambda: _training(pair, network, callback()),  # noqa: B023
                lambda: _training(pair, network),  # noqa: B023
                instances=2,
                smoke=smoke,
            )
            row = {"title": f"step with `{name}` / without, {title}"}
            rows.append({**row, **({"goal": goal} if goal else {}), **measured})
    return [*rows, scheduled(smoke)]


def scheduled(smoke):
    """A whole `fit()` in which the zeros become ever more, against a plain one.

    A small network: its steps are short, and choices of zeros are not.
    """
    steps = 8 if smoke else 2000
    measured = compare(
        lambda: _fitting(
            steps, lambda: [MagnitudePruning(0.9, end_step=steps)]
        ),
        lambda: _fitting(steps, list),
        instances=1,
        seconds=60.0,  # A fit takes seconds itself.
        smoke=smoke,
    )
    title = (
        f"`fit()` of {steps} steps with `MagnitudePruning`'s schedule / "
        "without, LeNet-300-100"
    )
    return {"title": title, "goal": 1.10, **measured}


def _fitting(steps, callbacks):
    """Return `run(times)`, which fits a new network with new callbacks."""
    random = np.random.default_rng(0)
    batches = min(steps, 100)
    x = random.random((batches * 128, 784), "float32")
    y = random.integers(0, 10, len(x))

    def run(times):
        for _ in range(times):
            _compiled(_lenet_300_100()).fit(
                x,
                y,
                batch_size=128,
                epochs=steps // batches,
                verbose=0,
                callbacks=callbacks(),
            )

    return run


def _lenet_300_100():
    layers = [keras.layers.Dense(units, "relu") for units in (300, 100)]
    return keras.Sequential(
        [keras.Input((784,)), *layers, keras.layers.Dense(10)]
    )


def _training(pair, network, callback=None):
    model = _compiled(network())
    if callback is not None:
        callback.set_params({"steps": 1})
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(0)
    return loops.training(model, setups.images(pair, labels=True))


def _compiled(model):
    model.compile(
        setups.optimizer(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model
