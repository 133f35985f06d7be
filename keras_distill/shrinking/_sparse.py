"""Fewer weights and fewer values, in place of fewer channels.

Zeros and shared values make a packed file small, and nothing else.
"""

import math
import pathlib
import tempfile

import keras
import numpy as np
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing
from keras_distill.compression import pack
from keras_distill.compression.channels._targets import first_that_fits
from keras_distill.compression.litert._before_training import as_if_trained
from keras_distill.compression.weights._smallest_weights import smallest
from keras_distill.compression.weights._weight_selection import (
    trainable_kernels,
)
from keras_distill.compression.weights._weight_sharing import cluster
from keras_distill.shrinking._budget import Budget
from keras_distill.shrinking._run import Run
from keras_distill.shrinking._run import Stage
from keras_distill.shrinking._teaching import Teaching

NAME = "sparse"
_SCOPE = "lamp"
_NUM_CLUSTERS = 16
# The share of the steps of pruning until all zeros are chosen.
_SHARE_CHOOSING = 0.6
# The smallest difference between shares of zeros that are tried.
_PRECISION = 1e-4
# While values are shared, zeros and clusters stay. Only the values change, and
# a codebook may compress less well.
_SPARE, _SPARE_BYTES = 0.005, 16


def is_possible(model: keras.Model, budget: Budget, teaching: Teaching) -> bool:
    """Return whether zeros can bring a model into the budget."""
    others = budget._replace(
        limits={k: v for k, v in budget.limits.items() if k != "max_bytes"},
        known={},
    )
    return (
        budget.form == "packed"
        and len(others.limits) < len(budget.limits)
        and (not others.limits or others.excess(model) <= 1)
        and teaching.epochs > teaching.rounding_epochs
        and bool(trainable_kernels(model))
    )


def sparsity_before(
    model: keras.Model, budget: Budget, stage: Stage
) -> float | None:
    """Return the share of zeros that the budget will require.

    Args:
        model: the network before it is trained with zeros.
        budget: the budget, which limits the bytes.
        stage: where the share is kept, because the search takes time.

    Returns:
        The share, or None if even the fewest weights take too many bytes.
    """
    return _sparsity(as_if_trained(model, is_int8=False), budget, stage)


def _sparsity(model, budget, stage):
    limit = budget.limits["max_bytes"]
    count = sum(math.prod(w.shape) for w in trainable_kernels(model))
    parts = min(count, round(1 / _PRECISION))

    def search():
        return first_that_fits(
            lambda number: _packed_bytes(model, number / parts) / limit,
            parts - 1,
        )

    number = stage.number("zeros", search)
    return None if number is None else number / parts


def _packed_bytes(model, sparsity):
    """Return the bytes of a model with more zeros, and with shared values."""
    copy = _copy(model)
    _set_zeros(copy, sparsity)
    for weight in _shared(copy):
        array = ops.convert_to_numpy(weight)
        clusters, values = cluster(array, _NUM_CLUSTERS)
        weight.assign(values.astype("float16")[clusters])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "file")
        pack(copy, path)
        size = path.stat().st_size
        return math.ceil(size * (1 + _SPARE)) + _SPARE_BYTES


def _copy(model):
    return Copier(lambda layer: None).copy(model)


def _set_zeros(model, sparsity):
    kernels = trainable_kernels(model)
    arrays = [ops.convert_to_numpy(kernel) for kernel in kernels]
    pruned = smallest(arrays, sparsity, _SCOPE)
    for kernel, array, zeros in zip(kernels, arrays, pruned):
        kernel.assign(array * ~zeros)


def _share_of_zeros(model):
    kernels = map(ops.convert_to_numpy, trainable_kernels(model))
    return float(np.mean(np.concatenate([k.ravel() for k in kernels]) == 0))


def _shared(model):
    """Return the weights that share values: kernels and biases."""
    biases = [w for w in model.trainable_variables if w.name == "bias"]
    return trainable_kernels(model) + biases


def trained(
    model: keras.Model,
    sparsity: float,
    budget: Budget,
    teaching: Teaching,
    run: Run,
) -> keras.Model:
    """Return a network that has learned with zeros, then with shared values.

    Args:
        model: the network to begin with, which is not changed. Its zeros stay.
        sparsity: the share of zeros, as `sparsity_before` returns it.
        budget: the budget.
        teaching: the training.
        run: where everything is kept.
    """
    model = _copy(model)
    epochs = teaching.epochs - teaching.rounding_epochs
    before = _share_of_zeros(model)
    pruning = MagnitudePruning(
        max(sparsity, before),
        initial_sparsity=before,
        end_step=int(_SHARE_CHOOSING * epochs * teaching.steps),
        scope=_SCOPE,
    )
    stage = run.stage(NAME, "pruning")
    teaching.fit(model, epochs, stage, NAME, callbacks=[pruning])
    stage = run.stage(NAME, "sharing")
    # The trained weights may take more bytes than was expected of them.
    _set_zeros(model, _sparsity(model, budget, stage) or 0.0)
    sharing = WeightSharing({w.path: _NUM_CLUSTERS for w in _shared(model)})
    teaching.fit(
        model,
        teaching.rounding_epochs,
        stage,
        f"{NAME}, shared values",
        is_late=True,
        callbacks=[sharing],
    )
    # Half precision holds these values well, and takes half of the bytes.
    for weight in _shared(model):
        weight.assign(ops.convert_to_numpy(weight).astype("float16"))
    return model
