"""What pruning and weight sharing add to a training step."""

import keras

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
    return rows


def _training(pair, network, callback=None):
    model = network()
    model.compile(
        setups.optimizer(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    if callback is not None:
        callback.set_params({"steps": 1})
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(0)
    return loops.training(model, setups.images(pair, labels=True))
