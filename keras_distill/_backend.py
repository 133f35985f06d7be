"""All that differs between TensorFlow, JAX and PyTorch, in one place.

A training step of the Distiller is Keras's own step on an annotated batch. The
backends differ in where state lives while that batch is prepared:

- TensorFlow reads and writes variables in place. What runs before Keras's step
  runs before its gradient tape, so nothing of it is kept for the backward pass.
- PyTorch does too, with the gradient switched off explicitly.
- JAX passes all state through the arguments of the compiled step. The teacher's
  variables are no part of the student's state, so they travel beside each batch
  (`feed`): a variable that is only read from inside would become a constant of
  the compiled step, and a teacher that changes would go unnoticed. Batches are
  not donated, so that the caller's teacher stays usable throughout.
"""

import contextlib
import json
import os

import keras
from keras import tree

_BACKEND = keras.backend.backend()

EMPTY = (
    "The data has no batches, so nothing was trained. Received: an empty "
    "dataset. Check the path, the filter or the split that it comes from."
)


def run_step(model, step, annotate, variables_read, arguments):
    """Run `step`, Keras's own step, on what `annotate` makes of the batch.

    Args:
        model: the model that owns the step.
        step: `train_step` or `test_step` of `keras.Model`, bound.
        annotate: function from a batch to an annotated batch.
        variables_read: function that returns the list of variables that
            `annotate` reads and `feed` supplied.
        arguments: the arguments of the step: `(data,)`, or on JAX
            `(state, data)`.
    """
    if _BACKEND != "jax":
        (data,) = arguments
        with _no_gradient():
            data = annotate(data)
        return step(data)

    state, (frozen_values, data) = arguments
    trainable, non_trainable, *rest = state
    mapping = [
        *zip(model.trainable_variables, trainable),
        *zip(model.non_trainable_variables, non_trainable),
        *zip(model.metrics_variables, rest[-1]),
        *zip(variables_read(), frozen_values),
    ]
    if len(rest) == 2:  # A training step; evaluation has no optimizer state.
        mapping += zip(model.optimizer.variables, rest[0])
    with keras.StatelessScope(state_mapping=mapping) as scope:
        data = annotate(data)
    # Drawing a view advances seed generators; watching a teacher, a metric.
    non_trainable = _updated(scope, model.non_trainable_variables)
    rest[-1] = _updated(scope, model.metrics_variables)
    return step((trainable, non_trainable, *rest), data)


@contextlib.contextmanager
def unwritten(teacher):
    """Run a block in which layers may write to weights, and undo it.

    Some layers write in inference too: counters, stateful recurrent layers, a
    BatchNormalization that is called with `training=True`. On JAX the scope of
    the step drops what they write, and it is noted which generators they draw
    from: `feed` advances those.

    Args:
        teacher: a `LiveTeacher`, whose `weights` are kept. The `seed_states`
            of its random generators advance.
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


def feed(model, function, frozen, teacher):
    """Wrap a train or test function so that its batches carry variables.

    Args:
        model: the model that the function belongs to.
        function: what `make_train_function` or `make_test_function` made.
        frozen: list of variables whose values go along with every batch.
        teacher: the `LiveTeacher`, whose random generators advance.
    """
    if _BACKEND != "jax":
        return function

    def values():
        # How often a step draws is not known outside of it: less often.
        for seed_state in teacher.drawn_from.values():
            seed_state.assign_add([0, 1024])
        return [v.value for v in frozen]

    def fed(state, iterator):
        batches = ((values(), batch) for batch in iterator)
        try:
            return function(state, batches)
        except Exception:
            # Keras has taken the values out of the model's variables and puts
            # back those after the last good step. If the first step fails,
            # there are none, and the student would be lost.
            _give_back(model, state)
            raise

    return fed


def _give_back(model, state):
    variables = [model.trainable_variables, model.non_trainable_variables]
    if len(state) == 4:
        variables.append(model.optimizer.variables)
    variables.append(model.metrics_variables)
    for group, values in zip(variables, state):
        for variable, value in zip(group, values):
            if not value.is_deleted():
                variable.assign(value)
    model._jax_state_synced = True


def first_batch(iterator):
    """Return the first batch of one of Keras's epoch iterators.

    Raises:
        ValueError: if there is none.
    """
    # Once: an epoch iterator of no data may offer empty steps for ever.
    for _, _, batches in iterator:
        batch = batches[0] if _BACKEND == "torch" else next(batches, None)
        break
    else:
        batch = None
    if batch is None:
        raise ValueError(EMPTY)
    return batch


def logs_of(result):
    """Return the logs in what a train or test function returned."""
    return result[0] if _BACKEND == "jax" else result


def num_replicas():
    """Return how many replicas a TensorFlow strategy runs in this context.

    Keras divides each loss by this number, since it sums the gradients of the
    replicas. What is logged has to be multiplied again.
    """
    if _BACKEND != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def has_values(tensors):
    """Tell whether tensors have values, and are no symbols of a compiled step.

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


def check_processes():
    """Raise if each of several processes would train a student of its own."""
    count = 1
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        workers = cluster.get("cluster", {}).get("worker", [])
        if not tf.distribute.has_strategy():
            count = max(1, len(workers))
    elif _BACKEND == "torch":
        import torch

        distributed = torch.distributed
        count = int(os.environ.get("WORLD_SIZE", 1))
        if distributed.is_available() and distributed.is_initialized():
            count = distributed.get_world_size()
    elif _BACKEND == "jax" and keras.distribution.distribution() is None:
        import jax

        count = jax.process_count()
    if count > 1:
        raise RuntimeError(
            f"{count} processes were started, and each would train a student "
            "of its own, without a word to the others. On TensorFlow use "
            "`tf.distribute.MirroredStrategy`, on JAX "
            "`keras.distribution.set_distribution(DataParallel(...))`, and on "
            "PyTorch one process."
        )


def global_random_state():
    """Return the state of the backend's own generator, `None` without one.

    On PyTorch, Keras's Dropout draws from it unless it was given a seed.
    """
    if _BACKEND != "torch":
        return None
    import torch

    return torch.get_rng_state().numpy()


def set_global_random_state(state):
    """Put back what `global_random_state` returned."""
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
