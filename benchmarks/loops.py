"""Compiled functions of each backend, without `fit()` around them.

`fit()` reads data, calls callbacks and closes iterators. None of this belongs
to a step, and on TensorFlow closing an iterator takes up to as long as the
epoch before it (see docs/performance.md). So a loop here calls the compiled
step on batches that are tensors already, the way `train_on_batch` does, and
waits for the last of them.
"""

import itertools

import keras
from keras import ops

BACKEND = keras.backend.backend()


def training(model, batches):
    """Return `run(steps)`, which trains a compiled model.

    Args:
        model: a compiled `keras.Model`.
        batches: list of `(x, y)`, tensors or `None`.
    """
    model.train_on_batch(*batches[0])  # builds, traces and compiles
    batches = itertools.cycle([(x, y, None) for x, y in batches])
    if BACKEND == "jax":
        return _jax_training(model, batches)

    def run(steps):
        for _ in range(steps):
            logs = model.train_function([next(batches)])
        wait_for(logs)

    return run


def _jax_training(model, batches):
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
        purge_model_variables=False,
    )

    def run(steps):
        nonlocal state
        for _ in range(steps):
            _, state = model.train_function(state, iter([next(batches)]))
        wait_for(state)

    return run


def inference(model):
    """Return a compiled function from a batch to the model's outputs."""

    def call(x):
        return model(x, training=False)

    return compiled(call, reads=model.variables)


def compiled(function, reads=(), writes=()):
    """Compile a function of tensors, without gradients.

    Args:
        function: function of tensors.
        reads: list of the variables that it reads.
        writes: list of the variables that it writes: seeds.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # As Keras decides for `fit()`: XLA on a GPU, none on CPUs.
        jit = keras.Sequential().jit_compile
        return tf.function(function, jit_compile=jit, autograph=False)
    if BACKEND == "jax":
        return _jax_compiled(function, list(reads), list(writes))
    import torch

    return torch.no_grad()(function)


def _jax_compiled(function, reads, writes):
    import jax

    @jax.jit
    def step(values, state, *inputs):
        mapping = [*zip(reads, values), *zip(writes, state)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = function(*inputs)
        return outputs, [scope.get_current_value(v) for v in writes]

    values = [v.value for v in reads]
    state = [v.value for v in writes]

    def call(*inputs):
        nonlocal state
        outputs, state = step(values, state, *inputs)
        return outputs

    return call


def repeated(function, inputs):
    """Return `run(steps)`, which calls a function on each input in turn."""
    inputs = itertools.cycle(inputs)

    def run(steps):
        for _ in range(steps):
            outputs = function(next(inputs))
        wait_for(outputs)

    return run


def together(first, second):
    """Return `run(steps)`, whose steps are one of each."""

    def run(steps):
        for _ in range(steps):
            first(1)
            second(1)

    return run


def by_hand(teacher, student, optimizer, loss, batches):
    """Return `run(steps)` of the loop that one would write oneself."""
    optimizer.build(student.trainable_variables)
    loops = {"tensorflow": _tf_loop, "jax": _jax_loop, "torch": _torch_loop}
    step = loops[BACKEND](teacher, student, optimizer, loss)
    return repeated(step, [x for x, _ in batches])


def _tf_loop(teacher, student, optimizer, loss):
    import tensorflow as tf

    @tf.function(jit_compile=student.jit_compile, autograph=False)
    def step(x):
        targets = teacher(x, training=False)
        with tf.GradientTape() as tape:
            value = loss(targets, student(x, training=True))
        gradients = tape.gradient(value, student.trainable_variables)
        optimizer.apply(gradients, student.trainable_variables)
        return value

    return step


def _jax_loop(teacher, student, optimizer, loss):
    import functools

    import jax

    def loss_of(trainable, non_trainable, targets, x):
        outputs, non_trainable = student.stateless_call(
            trainable, non_trainable, x, training=True
        )
        return loss(targets, outputs), non_trainable

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state, frozen, x):
        trainable, non_trainable, slots = state
        targets, _ = teacher.stateless_call(*frozen, x, training=False)
        (value, non_trainable), gradients = jax.value_and_grad(
            loss_of, has_aux=True
        )(trainable, non_trainable, targets, x)
        trainable, slots = optimizer.stateless_apply(
            slots, gradients, trainable
        )
        return value, (trainable, non_trainable, slots)

    def values(variables):
        return [v.value for v in variables]

    frozen = (
        values(teacher.trainable_variables),
        values(teacher.non_trainable_variables),
    )
    state = (
        values(student.trainable_variables),
        values(student.non_trainable_variables),
        values(optimizer.variables),
    )

    def step(x):
        nonlocal state
        value, state = train(state, frozen, x)
        return value, state

    return step


def _torch_loop(teacher, student, optimizer, loss):
    import torch

    variables = student.trainable_variables

    def step(x):
        with torch.no_grad():
            targets = teacher(x, training=False)
        student.zero_grad()
        value = loss(targets, student(x, training=True))
        value.backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in variables], variables)
        return value

    return step


def wait_for(values):
    """Return when these values have been computed."""
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(values)
        return
    last = keras.tree.flatten(values)[-1]
    if BACKEND == "torch":
        last = last.detach()
    ops.convert_to_numpy(last)
