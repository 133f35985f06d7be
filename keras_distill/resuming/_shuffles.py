"""The shuffles of TensorFlow's datasets and of PyTorch's loaders.

Both can feed any backend. What they draw from is neither Python's nor NumPy's
global generator.
"""

import keras
import numpy as np

_TORCH_LOADER = "TorchDataLoaderAdapter"


def of_arrays_without_seed(epoch_iterator):
    """Return whether `fit()` shuffles arrays in an order nobody can repeat.

    On TensorFlow, Keras shuffles them in a `tf.data.Dataset`. Without a global
    seed, each reading of it has another order.
    """
    adapter = epoch_iterator.data_adapter
    if (
        keras.backend.backend() != "tensorflow"
        or type(adapter).__name__ != "ArrayDataAdapter"
        or not adapter._shuffle
    ):
        return False
    from tensorflow.python.eager import context

    return context.global_seed() is None


def shuffle_again(epoch_iterator, seed):
    """Make the dataset of shuffled arrays again, with an order from a seed."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    tf.random.set_seed(seed)
    try:
        dataset = epoch_iterator.data_adapter.get_tf_dataset()
    finally:
        context.set_global_seed(None)
    strategy = epoch_iterator._distribute_strategy
    epoch_iterator._distributed_dataset = (
        strategy.experimental_distribute_dataset(dataset)
    )


def step_without_seed(dataset):
    """Return the name of a step that draws without a seed, or `None`.

    Args:
        dataset: a `tf.data.Dataset`.
    """
    waiting = [dataset]
    while waiting:
        step = waiting.pop()
        seeds = [getattr(step, name, 1) for name in ("_seed", "_seed2")]
        if not any(int(seed) for seed in seeds):
            return type(step).__name__.strip("_")
        for function in getattr(step, "_functions", list)():
            for operation in function.function.graph.get_operations():
                attributes = operation.node_def.attr
                if "seed2" in attributes and not (
                    attributes["seed"].i or attributes["seed2"].i
                ):
                    return operation.type
        waiting += getattr(step, "_inputs", list)()
    return None


def loader_states(adapter):
    """Return the states of what a PyTorch DataLoader shuffles with."""
    return [g.get_state().numpy() for g in _generators(adapter)]


def set_loader_states(adapter, states):
    """Restore the states that `loader_states` returned."""
    for generator, state in zip(_generators(adapter), states):
        import torch

        generator.set_state(torch.tensor(state.astype(np.uint8)))


def _generators(adapter):
    if type(adapter).__name__ != _TORCH_LOADER:
        return []
    import torch

    loader = adapter._dataloader
    owners = (loader, loader.sampler, loader.batch_sampler)
    found = [getattr(owner, "generator", None) for owner in owners]
    # Those without a generator of their own draw from the global one.
    found = [torch.default_generator, *(g for g in found if g is not None)]
    return list({id(generator): generator for generator in found}.values())
