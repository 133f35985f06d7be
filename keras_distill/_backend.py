"""Everything that differs between TensorFlow, JAX and PyTorch, in one place.

A training step of the Distiller is Keras's own step on an annotated batch. The
backends differ in where state is kept while that batch is prepared:

- TensorFlow reads and writes variables in place. The batch is prepared before
  Keras opens its gradient tape, so nothing of it is kept for the backward pass.
- PyTorch also writes in place; gradients are switched off explicitly.
- JAX passes all state through the arguments of the compiled step. The teacher's
  variables are not part of the student's state, so their values are passed with
  each batch (`feed`). Otherwise they would be constants of the compiled step,
  and changes of the teacher would have no effect. Batches are not donated, so
  the caller's teacher remains usable.

The only other files that name a backend are `_processes.py`, for several
processes on PyTorch, `_gradients.py`, for gradients inside a step,
`teachers/_torch_modules.py`, for torch modules as teachers,
`resuming/_shuffles.py`, for datasets of TensorFlow and PyTorch on any backend,
and the LiteRT converter of TensorFlow.
"""

import contextlib
import json
import os

import keras
from keras import tree

from keras_distill import _processes
from keras_distill._keras_internals import jax_state_is_in_variables
from keras_distill._keras_internals import variables_of_jax_state

_BACKEND = keras.backend.backend()

EMPTY = (
    "The data has no batches, so nothing was trained. Received: an empty "
    "dataset. Check the path, the filter or the split of the data."
)


def run_step(model, logs, step, annotate, variables_read, arguments):
    """Run Keras's own step on the annotated batch.

    Args:
        model: the model that owns the step.
        logs: its `Logs`.
        step: `train_step` or `test_step` of `keras.Model`, bound.
        annotate: function from a batch to an annotated batch.
        variables_read: function that returns the list of variables that
            `annotate` reads and `feed` supplied.
        arguments: the arguments of the step: `(data,)`, or on JAX
            `(state, data)`.
    """
    if _BACKEND != "jax":
        (data,) = arguments

        def annotated(data):
            with _no_gradient():
                return annotate(data)

        if _processes.count() > 1:
            return _processes.run_step(model, logs, step, annotated, data)
        results = step(annotated(data))
        if _has_workers(model):
            # Keras computes their mean over an axis, which scalars lack.
            results = {
                name: keras.ops.expand_dims(v, 0) for name, v in results.items()
            }
        return results

    state, (values_read, data) = arguments
    mapping = [*zip(variables_read(), values_read)]
    for variables, values in zip(variables_of_jax_state(model, state), state):
        mapping += zip(variables, values)
    with keras.StatelessScope(state_mapping=mapping) as scope:
        data = annotate(data)
    # Drawing a view advances seed generators, which are not trainable, and
    # checking the teacher's outputs updates a metric.
    trainable, _, *optimizer, _ = state
    return step(
        (
            trainable,
            _updated(scope, model.non_trainable_variables),
            *optimizer,
            _updated(scope, model.metrics_variables),
        ),
        data,
    )


@contextlib.contextmanager
def unwritten(teacher):
    """Run a block, and discard what it writes to the teacher's weights.

    Some layers write during inference: counters, stateful recurrent layers, a
    BatchNormalization that is called with `training=True`. On JAX the scope of
    the step discards what they write. It is recorded which random generators
    they draw from, and `feed` advances those.

    Args:
        teacher: a `LiveTeacher`, whose `weights` do not change. The
            `seed_states` of its random generators advance.
    """
    if _BACKEND == "jax":
        before = [(state, state.value) for state in teacher.seed_states]
        yield
        teacher.drawn_from.update(
            {id(state): state for state, v in before if state.value is not v}
        )
        return
    weights = teacher.weights
    if not weights:
        yield
        return
    seed_states = teacher.seed_states
    mapping = [(v, v.value) for v in (*weights, *seed_states)]
    with keras.StatelessScope(state_mapping=mapping) as scope:
        yield
    for state in seed_states:
        state.assign(scope.get_current_value(state))


def feed(model, function, variables, teacher):
    """Wrap a compiled step so that batches come with values of variables.

    Args:
        model: the model that the step belongs to.
        function: what `make_train_function` or `make_test_function` made.
        variables: list of variables whose values are passed with each batch.
        teacher: the `LiveTeacher`, whose random generators advance.
    """
    if _BACKEND != "jax":
        return function

    def values():
        # How often a step draws is unknown here, but always less than this.
        for seed_state in teacher.drawn_from.values():
            seed_state.assign_add([0, 1024])
        return [variable.value for variable in variables]

    def fed(state, iterator):
        batches = ((values(), batch) for batch in iterator)
        try:
            return function(state, batches)
        except Exception:
            # Keras moved the values from the variables into the state, and
            # restores those of the last successful step. If the first step
            # fails, there are none, and the student would be lost.
            _restore(model, state)
            raise

    return fed


def _restore(model, state):
    _assign_state(model, state)
    jax_state_is_in_variables(model)


def _assign_state(model, state):
    for variables, values in zip(variables_of_jax_state(model, state), state):
        for variable, value in zip(variables, values):
            if not value.is_deleted():
                variable.assign(value)


def replace_batch(model, arguments, is_chosen, replace):
    """Return the arguments of a compiled step, maybe with another batch.

    Meanwhile, the model's variables hold the weights before this step.

    Args:
        model: the model that the step belongs to.
        arguments: what Keras calls the step with.
        is_chosen: function of the number of the step that returns whether its
            batch is replaced.
        replace: function `(batch, step) -> batch`.
    """
    *state, batches = arguments
    step = model.optimizer.iterations
    if _BACKEND == "jax":
        _, _, variables, _ = variables_of_jax_state(model, state[0])
        values = dict(zip(map(id, variables), state[0][2]))
        step = values[id(step)]
    step = int(keras.ops.convert_to_numpy(step))
    if not is_chosen(step):
        return arguments
    if _BACKEND == "torch":
        return ([replace(batches[0], step)],)
    if _BACKEND == "jax":
        _assign_state(model, state[0])
    batch = replace(next(batches), step)
    if _BACKEND == "jax":
        return *state, iter([batch])
    import tensorflow as tf

    return (iter(tf.data.Dataset.from_tensors(batch)),)


def is_on_one_device(model):
    """Return whether one device of one process trains a model."""
    parts, (_, processes) = division_of_batches(model)
    return parts == processes == 1 and keras.distribution.distribution() is None


@contextlib.contextmanager
def weights_kept(model):
    """Run an `evaluate` that leaves a model its weights if it fails.

    On JAX, Keras moves them from the variables into the state of the steps.
    Its `fit` moves them back after an error, and its `evaluate` does not.
    """
    try:
        yield
    finally:
        if _BACKEND == "jax":
            model.jax_state_sync()


def first_batch(iterator):
    """Return the first batch of one of Keras's epoch iterators.

    With a strategy of TensorFlow, this is the part of one replica.

    Raises:
        ValueError: if there is none.
    """
    _processes.check_data(iterator.num_batches)
    # Only once: without data, an epoch iterator may yield empty steps forever.
    for _, _, batches in iterator:
        batch = batches[0] if _BACKEND == "torch" else next(batches, None)
        break
    else:
        batch = None
    if batch is None:
        raise ValueError(EMPTY)
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        local_values = tf.distribute.get_strategy().experimental_local_results
        batch = tree.map_structure(lambda leaf: local_values(leaf)[0], batch)
    return batch


def logs_of(result):
    """Return the logs in what a train or test function returned."""
    return result[0] if _BACKEND == "jax" else result


def num_replicas():
    """Return how many replicas a TensorFlow strategy runs in this context.

    Keras divides each loss by this number, because it sums the gradients of
    the replicas. Logged losses must be multiplied by it again.
    """
    if _BACKEND != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _has_workers(model):
    """Return whether a TensorFlow strategy runs the model in processes."""
    if _BACKEND != "tensorflow":
        return False
    return model.distribute_strategy.cluster_resolver is not None


def has_values(tensors):
    """Return whether tensors have values, and are not symbolic.

    Args:
        tensors: a structure of tensors.
    """
    (first, *_) = tree.flatten(tensors)
    if isinstance(first, keras.KerasTensor):
        return False
    if _BACKEND == "jax":
        import jax

        return not isinstance(first, jax.core.Tracer)
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        return not tf.is_symbolic_tensor(first)
    return True


def runs_torch_modules():
    """Return whether a training step can run torch modules."""
    return _BACKEND == "torch"


def check_processes(model):
    """Raise if each of several processes would train a separate student.

    Args:
        model: the model to train.
    """
    count = 1
    if _BACKEND == "tensorflow":
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        workers = cluster.get("cluster", {}).get("worker", [])
        if not _has_workers(model):
            count = len(workers)
    elif _BACKEND == "torch" and _processes.count() == 1:
        count = int(os.environ.get("WORLD_SIZE", 1))
    elif _BACKEND == "jax" and keras.distribution.distribution() is None:
        import jax

        count = jax.process_count()
    if count > 1:
        raise RuntimeError(
            f"Received: {count} processes that are not connected, so each "
            "would train a student of its own. Before you create the models: "
            "on TensorFlow enter the scope of a "
            "`tf.distribute.MultiWorkerMirroredStrategy`, on JAX call "
            "`keras.distribution.set_distribution(...)`, and on PyTorch call "
            "`torch.distributed.init_process_group()`."
        )


def process(model):
    """Return `(number of this process, how many train the model)`."""
    if _BACKEND == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    if _BACKEND == "torch":
        return _processes.rank(), _processes.count()
    resolver = model.distribute_strategy.cluster_resolver
    tasks = {} if resolver is None else resolver.cluster_spec().as_dict()
    chiefs, workers = len(tasks.get("chief", [])), len(tasks.get("worker", []))
    if chiefs + workers < 2:
        return 0, 1
    before = chiefs if resolver.task_type == "worker" else 0
    return before + resolver.task_id, chiefs + workers


def division_of_batches(model):
    """Return how a batch reaches the steps that train a model.

    Returns:
        `(parts, (number, count))`: the number of parts of a batch that steps
        see separately, and which share of a batch this process reads.

        - TensorFlow divides each batch, which every process reads as a whole.
        - JAX joins the shares of its processes. A step sees the whole batch.
        - On PyTorch, each process reads its share, and a step sees no more.
    """
    if _BACKEND == "tensorflow":
        return model.distribute_strategy.num_replicas_in_sync, (0, 1)
    share = process(model)
    return (1 if _BACKEND == "jax" else share[1]), share


def global_random_state():
    """Return the state of the backend's global generator, or `None`.

    On PyTorch, Keras's Dropout draws from it unless it was given a seed.
    """
    if _BACKEND != "torch":
        return None
    import torch

    return torch.get_rng_state().numpy()


def set_global_random_state(state):
    """Restore the state that `global_random_state` returned."""
    if _BACKEND == "torch":
        import torch

        torch.set_rng_state(torch.tensor(state, dtype=torch.uint8))


def _updated(scope, variables):
    return [scope.get_current_value(variable) for variable in variables]


def _no_gradient():
    if _BACKEND == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()
