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
from keras_distill.compression.weights._smallest_weights import share_of_zeros
from keras_distill.compression.weights._smallest_weights import smallest
from keras_distill.compression.weights._weight_selection import (
    trainable_kernels,
)
from keras_distill.compression.weights._weight_sharing import cluster
from keras_distill.shrinking._budget import Budget
from keras_distill.shrinking._budget import with_spare
from keras_distill.shrinking._run import Run
from keras_distill.shrinking._teaching import Teaching

NAME = "sparse"
NARROW = "narrow-sparse"
# The share of the weights of a narrow network that do not become zero. With
# fewer, the positions of each take more bits.
_DENSITY = 0.075
_SCOPE = "lamp"
_NUM_CLUSTERS = 16
# The share of the steps of pruning until all zeros are chosen.
_SHARE_CHOOSING = 0.6
# The smallest difference between shares of zeros that are tried.
_PRECISION = 1e-4
# While values are shared, zeros and clusters stay. Only the values change, and
# a codebook may compress less well.
_SPARE_BYTES = 16


def sparsity_before(
    model: keras.Model, budget: Budget, run: Run, name: str
) -> float | None:
    """Return the share of zeros that the budget will require.

    Args:
        model: the network before it is trained with zeros.
        budget: the budget, for which `is_possible`.
        run: where the share is kept, because the search takes time.
        name: of the candidate.

    Returns:
        The share, or None if zeros cannot bring the model into the budget.
    """
    if budget.without("max_bytes").excess(model) > 1:
        return None
    stage = run.stage(name, "pruning")
    return _sparsity(as_if_trained(model, is_int8=False), budget, stage)


def excess_if_narrow(model: keras.Model, budget: Budget) -> float:
    """Return the costs of a narrow network divided by the limits, the largest.

    Args:
        model: a network from which channels were removed.
        budget: the budget, with `max_bytes`.
    """
    packed = _packed_bytes(as_if_trained(model, is_int8=False), 1 - _DENSITY)
    return max(
        packed / budget.limits["max_bytes"],
        budget.without("max_bytes").excess(model),
    )


def is_possible(model: keras.Model, budget: Budget, teaching: Teaching) -> bool:
    """Return whether the budget is one of packed bytes, and zeros can train."""
    return (
        budget.form == "packed"
        and "max_bytes" in budget.limits
        and teaching.epochs > teaching.rounding_epochs
        and bool(trainable_kernels(model))
    )


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
    copy = Copier().copy(model)
    _set_zeros(copy, sparsity)
    for weight in _shared(copy):
        array = ops.convert_to_numpy(weight)
        clusters, values = cluster(array, _NUM_CLUSTERS)
        weight.assign(values.astype("float16")[clusters])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "file")
        pack(copy, path)
        return with_spare(path.stat().st_size) + _SPARE_BYTES


def _set_zeros(model, sparsity):
    arrays = _kernel_arrays(model)
    pruned = smallest(arrays, sparsity, _SCOPE)
    for kernel, array, zeros in zip(trainable_kernels(model), arrays, pruned):
        kernel.assign(np.where(zeros, 0, array))


def _kernel_arrays(model):
    return [ops.convert_to_numpy(kernel) for kernel in trainable_kernels(model)]


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
    name: str,
) -> keras.Model:
    """Return a network that has learned with zeros, then with shared values.

    Args:
        model: the network to begin with, which is not changed. Its zeros stay.
        sparsity: the share of zeros, as `sparsity_before` returns it.
        budget: the budget.
        teaching: the training.
        run: where everything is kept.
        name: of the candidate.
    """
    model = Copier().copy(model)
    epochs = teaching.epochs - teaching.rounding_epochs
    before = share_of_zeros(_kernel_arrays(model))
    pruning = MagnitudePruning(
        max(sparsity, before),
        initial_sparsity=before,
        end_step=int(_SHARE_CHOOSING * epochs * teaching.steps),
        scope=_SCOPE,
    )
    stage = run.stage(name, "pruning")
    teaching.fit(model, epochs, stage, name, callbacks=[pruning])
    stage = run.stage(name, "sharing")
    # The trained weights may take more bytes than was expected of them.
    _set_zeros(model, _sparsity(model, budget, stage) or 0.0)
    sharing = WeightSharing({w.path: _NUM_CLUSTERS for w in _shared(model)})
    teaching.fit(
        model,
        teaching.rounding_epochs,
        stage,
        f"{name}, shared values",
        is_late=True,
        callbacks=[sharing],
    )
    # Half precision holds these values well, and takes half of the bytes.
    for weight in _shared(model):
        weight.assign(ops.convert_to_numpy(weight).astype("float16"))
    return model
