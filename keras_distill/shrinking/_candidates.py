"""Ways from a network to a smaller one that fits a budget."""

from typing import NamedTuple

import keras
from keras import layers
from keras import tree

from keras_distill._graphs._outputs import known_inputs
from keras_distill.compression import quantize_aware
from keras_distill.compression._models import layers_of
from keras_distill.compression.channels._removable_channels import (
    RemovableChannels,
)
from keras_distill.compression.channels._targets import fewest_removed
from keras_distill.compression.channels._targets import removal_order
from keras_distill.shrinking import _sparse
from keras_distill.shrinking._budget import Budget
from keras_distill.shrinking._budget import described
from keras_distill.shrinking._run import Run
from keras_distill.shrinking._run import Stage
from keras_distill.shrinking._teaching import Teaching


class Way(NamedTuple):
    """How channels are removed.

    Attributes:
        scope: as in `prune_channels`.
        steps: in how many steps, with training between them.
    """

    scope: str
    steps: int


_BATCH_FOR_STATISTICS = 128
# The share of the epochs between the steps of a way that has several.
_SHARE_BETWEEN = 1 / 3
WAYS = {
    "uniform": Way("group", 1),
    "global": Way("global", 1),
    "iterative": Way("global", 3),
}


def pruned(
    model: keras.Model, scope: str, budget: Budget, stage: Stage
) -> keras.Model:
    """Return a copy of a model without as few channels as the budget allows.

    Args:
        model: a model with a layer graph.
        scope: as in `prune_channels`.
        budget: the budget.
        stage: where the number of removed channels is kept, because the search
            for it takes time, and milliseconds differ each time.

    Raises:
        ValueError: if the budget cannot be reached.
    """
    channels = RemovableChannels(model)
    order = removal_order(channels, scope)

    def search():
        number = fewest_removed(channels, order, budget.excess)
        if number is None:
            _refuse(channels.model_without(order), budget)
        return number

    number = stage.number("removed", search)
    return _without(channels, order[:number], budget)


def _without(channels, removed, budget):
    small = channels.model_without(removed)
    _estimate_statistics(small, budget.samples)
    return small


def _narrow(model, budget, run):
    """Return a network with as few channels removed as its zeros allow.

    Its packed file takes fewer bits for the position of each weight. None is
    returned if no channel has to be removed, or if that is not enough.
    """
    channels = RemovableChannels(model)
    order = removal_order(channels, "group")
    number = run.stage(_sparse.NARROW, "channels").number(
        "removed",
        lambda: fewest_removed(
            channels, order, lambda m: _sparse.excess_if_narrow(m, budget)
        ),
    )
    return _without(channels, order[:number], budget) if number else None


def _estimate_statistics(model, samples):
    """Set the statistics of BatchNormalizations to those of a batch.

    They are those of the larger network, and a short training with a momentum
    of 0.99 would leave them wrong.
    """
    momenta = {
        layer: layer.momentum
        for layer in layers_of(model)
        if isinstance(layer, layers.BatchNormalization)
    }
    if not momenta:
        return
    for layer in momenta:
        layer.momentum = 0.0
    batch = [array[:_BATCH_FOR_STATISTICS] for array in samples]
    model(tree.pack_sequence_as(known_inputs(model), batch), training=True)
    for layer, momentum in momenta.items():
        layer.momentum = momentum


def _refuse(smallest, budget):
    raise ValueError(
        "Pruning cannot reach the budget: the smallest network has "
        f"{described(budget.costs(smallest))}. Received: "
        f"{described(budget.limits)}. Raise the limit, use another precision, "
        "or begin with a smaller network."
    )


def taught(
    model: keras.Model, budget: Budget, teaching: Teaching, run: Run
) -> dict[str, keras.Model]:
    """Return a trained network of each way, by name.

    Args:
        model: the network to begin with.
        budget: the budget.
        teaching: the training.
        run: where everything is kept.

    Raises:
        ValueError: if the budget cannot be reached, before any training.
    """
    ready = {
        name: _last_step(model, name, budget, run)
        for name, way in WAYS.items()
        if way.steps == 1
    }
    for small in ready.values():
        teaching.check(small)
    plans = _sparse_plans(model, budget, teaching, run)
    students = {
        name: _student(model, name, ready.get(name), budget, teaching, run)
        for name in WAYS
    }
    for name, (start, sparsity) in plans.items():
        students[name] = _sparse.trained(
            start, sparsity, budget, teaching, run, name
        )
    return students


def _sparse_plans(model, budget, teaching, run):
    """Return `{name: (network, share of zeros)}` of the ways with zeros."""
    if not _sparse.is_possible(model, budget, teaching):
        return {}
    starts = {_sparse.NAME: model, _sparse.NARROW: _narrow(model, budget, run)}
    sparsities = {
        name: _sparse.sparsity_before(start, budget, run, name)
        for name, start in starts.items()
        if start is not None
    }
    return {
        name: (starts[name], sparsity)
        for name, sparsity in sparsities.items()
        if sparsity is not None
    }


def _last_step(model, name, budget, run):
    stage = run.stage(name, "last-step")
    return pruned(model, WAYS[name].scope, budget, stage)


def _student(model, name, small, budget, teaching, run):
    """Return the trained network of one way.

    The epochs are divided among the stages. `small` is the network that is
    trained, or None if the way has steps before.
    """
    scope, steps = WAYS[name]
    between = 0
    if steps > 1:
        between = int(teaching.epochs * _SHARE_BETWEEN / (steps - 1))
        costs = budget.costs(model)
    for step in range(1, steps):
        stage = run.stage(name, f"step-{step}")
        nearer = budget.on_the_way(costs, step / steps)
        model = pruned(model, scope, nearer, stage)
        teaching.fit(model, between, stage, f"{name}, step {step} of {steps}")
    rounding = teaching.rounding_epochs if budget.is_int8 else 0
    left = teaching.epochs - between * (steps - 1) - rounding
    if small is None:
        small = _last_step(model, name, budget, run)
    model = small
    teaching.fit(model, left, run.stage(name, "last-step"), name)
    if budget.is_int8:
        model = quantize_aware(model)
        stage = run.stage(name, "rounding")
        teaching.fit(model, rounding, stage, f"{name}, rounded", is_late=True)
    return model
