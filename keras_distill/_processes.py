"""PyTorch: the processes that `torchrun` starts train one student.

Keras has no distribution on PyTorch. Here each step of a process, on its share
of a batch, becomes one step of all processes on the whole batch:

- Before the first step of a `fit()`, the student and its optimizer get the
  state of process 0. The teacher is not sent: each process loads its own, and
  it is checked that all are the same.
- Gradients are summed over the processes, between Keras's backward pass and
  its optimizer. Each process counts by its share of the samples, so the last
  batch may be divided unevenly.
- The state that a step changes otherwise (metrics, the statistics of
  BatchNormalization) gets the changes of all processes. So every process logs
  the same numbers, and callbacks decide the same everywhere.

Before all of this, the processes compare where they are (`_meet`). A process
that has fewer batches than the others raises in all of them: nothing waits for
a process that is elsewhere.

Left out: `DistributedDataParallel`. It wraps the forward pass of a torch
module, and the step of Keras calls the model itself.
"""

import contextlib

import keras
import numpy as np
from keras import tree

from keras_distill._keras_internals import random_states

# Where a process can be when it meets the others.
_PLACES = ("data", "start", "train_step", "test_step", "end")

# How far the random numbers of two processes are apart, in draws.
_DRAWS = 2**24


def count():
    """Return how many processes train one student."""
    if keras.backend.backend() != "torch":
        return 1
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank():
    """Return the number of this process among them."""
    if count() == 1:
        return 0
    from torch import distributed

    return distributed.get_rank()


def check_data(num_batches):
    """Raise if the processes have different numbers of batches.

    Args:
        num_batches: int, or `None` if it is unknown. Then the processes notice
            it when the first of them has no more batches.
    """
    if count() > 1:
        numbers = _meet("data", number=num_batches or 0)  # 0 if unknown
        if len(set(numbers)) > 1:
            raise ValueError(
                f"{_SAME_NUMBER} Received: {numbers} batches (0: unknown)."
            )


def start(model, teacher_weights):
    """Give every process the student and the optimizer of process 0.

    Args:
        model: the model whose steps follow.
        teacher_weights: list of variables, which must be the same everywhere.

    Raises:
        ValueError: if the processes have different teachers.
    """
    if count() == 1:
        return
    import torch
    from torch import distributed

    _meet("start", model.optimizer.iterations)
    sums = [w.value.detach().double().abs().sum() for w in teacher_weights]
    if sums:
        lowest, highest = torch.stack(sums), torch.stack(sums)
        distributed.all_reduce(lowest, distributed.ReduceOp.MIN)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        if not torch.allclose(lowest, highest, rtol=1e-9, equal_nan=True):
            raise ValueError(
                "Every process must have the same teacher. Received: teachers "
                "with different weights. Load the teacher from the same file "
                "in every process."
            )
    for variable in (*model.variables, *model.optimizer.variables):
        distributed.broadcast(variable.value.detach(), src=0)
    _draw_other_numbers(model)


def _draw_other_numbers(model):
    """Let each process draw views and dropout masks of its own."""
    import torch

    offset = rank() * _DRAWS
    for state in random_states(model):
        state.value[0] += offset
    # Dropout without a seed draws from the generator of PyTorch.
    if offset:
        torch.manual_seed(
            torch.initial_seed() + offset + int(model.optimizer.iterations)
        )


def run_step(model, logs, step, annotate, data):
    """Run a step on a share of a batch, as a part of the step of all.

    Args:
        model, logs, step, annotate: as for `_backend.run_step`.
        data: this process's share of the batch.

    Returns:
        The logs of the whole batch.
    """
    leaves = [leaf for leaf in tree.flatten(data) if leaf is not None]
    sizes = _meet(
        step.__name__,
        model.optimizer.iterations,
        logs.steps_of_epoch,
        number=len(leaves[0]),
    )
    share = len(leaves[0]) / sum(sizes)
    states = [*model.metrics_variables, *model.non_trainable_weights]
    before = [state.value.clone() for state in states]
    with _summed_gradients(model.optimizer, share):
        local = step(annotate(data))
    _sum_changes(states, before, share)
    results = logs.add_counts(model.get_metrics_result())
    return {name: results[name] for name in local}


def end(model):
    """Raise if other processes still have batches."""
    if count() > 1:
        _meet("end", model.optimizer.iterations)


@contextlib.contextmanager
def _summed_gradients(optimizer, share):
    """Let an optimizer get the gradients of all processes."""
    own = vars(optimizer).get("apply")  # that of a compression callback
    apply = optimizer.apply

    def apply_sum(grads, trainable_variables=None):
        found = [i for i, grad in enumerate(grads) if grad is not None]
        summed = _sum([grads[i] for i in found], [share] * len(found))
        for i, grad in zip(found, summed):
            grads[i] = grad
        apply(grads, trainable_variables)

    optimizer.apply = apply_sum
    try:
        yield
    finally:
        del optimizer.apply
        if own is not None:
            optimizer.apply = own


def _sum_changes(states, before, share):
    """Add the changes of all processes to states that were equal before."""
    counts = []
    for state in states:
        if state.aggregation == "sum":  # metrics
            counts.append(1.0)
        elif keras.backend.is_float_dtype(state.dtype):  # statistics
            counts.append(share)
        else:  # counters, which count steps
            counts.append(float(rank() == 0))
    changes = [state.value - old for state, old in zip(states, before)]
    for state, old, change in zip(states, before, _sum(changes, counts)):
        state.assign(old + change)


def _sum(tensors, counts):
    """Return the sums over all processes of tensors times numbers."""
    import torch
    from torch import distributed

    if not tensors:
        return []
    with torch.no_grad():
        # One message: many small ones take longer.
        flat = torch.cat(
            [t.reshape(-1).float() * n for t, n in zip(tensors, counts)]
        )
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [
            part.reshape(tensor.shape).to(tensor.dtype)
            for part, tensor in zip(parts, tensors)
        ]


def _meet(place, *position, number=0):
    """Wait for the other processes, and return the number of each.

    Args:
        place: one of `_PLACES`.
        *position: integers that are equal in all processes.
        number: int.

    Raises:
        RuntimeError: if another process is at another place or position.
    """
    from torch import distributed

    position = [int(p) for p in position] + [0] * (2 - len(position))
    table = np.zeros((distributed.get_world_size(), 4), "int64")
    table[rank()] = _PLACES.index(place), *position, number
    table = keras.ops.convert_to_tensor(table)
    distributed.all_reduce(table)
    rows = keras.ops.convert_to_numpy(table).tolist()
    if any(row[:3] != rows[0][:3] for row in rows):
        where = [
            f"process {rank} at {_PLACES[row[0]]!r}, after {row[1]} updates "
            f"and {row[2]} steps of this epoch"
            for rank, row in enumerate(rows)
        ]
        raise RuntimeError(f"{_SAME_NUMBER} Received: {'; '.join(where)}.")
    return [row[3] for row in rows]


_SAME_NUMBER = (
    "All processes must call `fit()` and `evaluate()` together, with the same "
    "arguments, callbacks that restore, and number of batches. Divide the data "
    "so that each process has as many batches as the others."
)
