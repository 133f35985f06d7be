"""Gradients of a function over many tokens, a few tokens at a time.

What is computed for one chunk of tokens is freed before the next one begins. So
memory grows with the hidden states of all tokens, and not with their logits.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_distill._typing import Tensor

_BACKEND = keras.backend.backend()


def in_chunks(
    function: Callable[[Tensor, list, Any], tuple[Tensor, Tensor]],
    tokens: Tensor,
    weights: list[Tensor],
    others: Any,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the values of a function, and the gradients of its sum.

    Args:
        function: maps `(tokens, weights, others)` of one chunk to `(sum,
            values)`: a scalar, and float32 values of any shape.
        tokens: a float tensor `(chunks, ...)`.
        weights: list of float tensors, which all chunks share.
        others: a structure of tensors `(chunks, ...)`, which get no gradient.
        with_gradients: bool. If `False`, the gradient of tokens is zero, and
            weights have none.

    Returns:
        `(values, gradient of tokens, gradients of weights)`. The first two have
        the leading axis `(chunks, ...)`. Gradients are float32.
    """
    gradients_of = _GRADIENTS[_BACKEND] if with_gradients else _no_gradients

    def step(chunk, of_others):
        values, of_chunk, of_weights = gradients_of(
            function, chunk, weights, of_others
        )
        return (
            values,
            keras.ops.cast(of_chunk, "float32"),
            [keras.ops.cast(each, "float32") for each in of_weights],
        )

    summed = weights if with_gradients else []
    zeros = [keras.ops.zeros(weight.shape, "float32") for weight in summed]
    return _LOOPS[_BACKEND](step, tokens, others, zeros)


def _gradients_jax(function, tokens, weights, others):
    import jax

    of_inputs, values = jax.grad(function, argnums=(0, 1), has_aux=True)(
        tokens, weights, others
    )
    return values, *of_inputs


def _gradients_torch(function, tokens, weights, others):
    import torch

    inputs = [leaf.detach().requires_grad_() for leaf in (tokens, *weights)]
    with torch.enable_grad():
        total, values = function(inputs[0], inputs[1:], others)
    of_tokens, *of_weights = torch.autograd.grad(
        total, inputs, allow_unused=True, materialize_grads=True
    )
    return values.detach(), of_tokens, of_weights


def _gradients_tensorflow(function, tokens, weights, others):
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([tokens, *weights])
        total, values = function(tokens, weights, others)
    of_tokens, *of_weights = tape.gradient(
        total, [tokens, *weights], unconnected_gradients="zero"
    )
    return values, of_tokens, of_weights


_GRADIENTS = {
    "jax": _gradients_jax,
    "torch": _gradients_torch,
    "tensorflow": _gradients_tensorflow,
}


def _no_gradients(function, tokens, weights, others):
    _, values = function(tokens, weights, others)
    return values, keras.ops.zeros_like(tokens), []


def _loop_jax(step, tokens, others, totals):
    import jax

    def add(totals, chunk):
        values, of_tokens, of_weights = step(*chunk)
        return _added(totals, of_weights), (values, of_tokens)

    totals, (values, of_tokens) = jax.lax.scan(add, totals, (tokens, others))
    return values, of_tokens, totals


def _loop_torch(step, tokens, others, totals):
    import torch

    kept = []
    for index in range(len(tokens)):
        *of_chunk, of_weights = step(tokens[index], _at(others, index))
        for total, gradient in zip(totals, of_weights):
            total += gradient  # in place
        kept.append(of_chunk)
    return *map(torch.stack, zip(*kept)), totals


def _loop_tensorflow(step, tokens, others, totals):
    import tensorflow as tf

    def add(index, totals, *arrays):
        *of_chunk, of_weights = step(tokens[index], _at(others, index))
        arrays = [array.write(index, v) for array, v in zip(arrays, of_chunk)]
        return index + 1, _added(totals, of_weights), *arrays

    count = tf.shape(tokens)[0]
    arrays = [tf.TensorArray("float32", count) for _ in range(2)]
    _, totals, *arrays = tf.while_loop(
        lambda index, *_: index < count,
        add,
        (0, totals, *arrays),
        parallel_iterations=2,  # Faster than one; more would take the memory.
    )
    return *(array.stack() for array in arrays), totals


_LOOPS = {
    "jax": _loop_jax,
    "torch": _loop_torch,
    "tensorflow": _loop_tensorflow,
}


def _at(others, index):
    return tree.map_structure(lambda other: other[index], others)


def _added(totals, gradients):
    return [total + each for total, each in zip(totals, gradients)]
