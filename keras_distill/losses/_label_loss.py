"""Label losses: the part of a loss that compares the student with the labels.

Keras's losses for labels have their own argument `from_logits`, which defaults
to `False`. A distillation loss knows whether the student returns logits. So a
label loss that is given by name gets the same `from_logits`, and a loss object
with another value is refused.
"""

import functools
import inspect
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _divergence
from keras_distill.losses import _shapes

# Losses of Keras that take probabilities and have no `from_logits`.
_FOR_PROBABILITIES = (
    "KLDivergence",
    "kl_divergence",
    "Poisson",
    "poisson",
    "Dice",
    "dice",
    "Tversky",
    "tversky",
)


def resolve(
    label_loss: str | keras.losses.Loss | Callable,
    from_logits: bool,
    argument: str = "label_loss",
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function `(labels, student) -> values` for a label loss.

    Args:
        label_loss: a Keras loss, its name, or a function.
        from_logits: bool. Whether the student returns logits.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: if the loss takes probabilities and the student returns
            logits, or the reverse.
    """
    check_from_logits(label_loss, from_logits, argument)
    loss = _get(label_loss, from_logits)
    if isinstance(loss, keras.losses.Loss):
        return loss.call
    if has_from_logits(loss):
        return functools.partial(loss, from_logits=from_logits)
    return loss


def _get(label_loss, from_logits):
    """Return the loss for a name, with `from_logits` as given."""
    loss = keras.losses.get(label_loss)
    is_name = isinstance(label_loss, str)
    if is_name and getattr(loss, "from_logits", None) is False and from_logits:
        return type(loss).from_config(
            {**loss.get_config(), "from_logits": True}
        )
    return loss


def check_from_logits(
    label_loss: str | keras.losses.Loss | Callable,
    from_logits: bool,
    argument: str,
) -> None:
    """Check that a label loss takes what the student returns.

    Args:
        label_loss: a Keras loss, its name, or a function.
        from_logits: bool. Whether the student returns logits.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: if the loss takes probabilities and the student returns
            logits, or the reverse; or if the loss has another reduction.
    """
    reduction = getattr(label_loss, "reduction", "sum_over_batch_size")
    if reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            f"`{argument}` must have the default reduction. "
            f"Received: {argument}={name_of(label_loss)} with reduction="
            f"{reduction!r}. Pass `reduction` to the distillation loss, which "
            "applies it to all of its terms."
        )
    found = getattr(label_loss, "from_logits", None)
    if isinstance(label_loss, functools.partial):
        found = label_loss.keywords.get("from_logits")
    if found is not None and bool(found) != from_logits:
        raise ValueError(
            f"`{argument}` takes {_kind(found)} and the student returns "
            f"{_kind(from_logits)}. Received: {argument}="
            f"{name_of(label_loss)} with from_logits={bool(found)}. Pass "
            f"`from_logits={from_logits}` to it."
        )
    if from_logits and _takes_probabilities(keras.losses.get(label_loss)):
        raise ValueError(
            f"`{argument}` takes probabilities and the student returns logits. "
            f"Received: {argument}={name_of(label_loss)}. Use a "
            "cross-entropy, or add a last activation to both models and use "
            "`from_logits=False`."
        )


def _takes_probabilities(loss):
    return is_of_keras(loss) and name_of(loss) in _FOR_PROBABILITIES


def is_of_keras(loss: Any) -> bool:
    """Return whether a loss is one of Keras, and not a custom loss."""
    if isinstance(loss, functools.partial):
        return is_of_keras(loss.func)
    module = getattr(loss, "__module__", None) or type(loss).__module__
    return module.startswith("keras.")


def _kind(from_logits):
    return "logits" if from_logits else "probabilities"


def name_of(loss: Any) -> str:
    """Return the name of a loss: a string, a class or a function."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, functools.partial):
        return name_of(loss.func)
    return getattr(loss, "__name__", type(loss).__name__)


def _parameter_from_logits(function):
    """Return the parameter `from_logits` of a function, or `None`."""
    try:
        return inspect.signature(function).parameters.get("from_logits")
    except (TypeError, ValueError):
        return None  # Some functions written in C have no signature.


def has_from_logits(loss: Any) -> bool:
    """Return whether a name or a function requires a value of `from_logits`."""
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(loss, functools.partial) and "from_logits" in loss.keywords:
        return False
    return (
        not isinstance(loss, keras.losses.Loss)
        and _parameter_from_logits(loss) is not None
    )


def serialize(loss: Any) -> Any:
    """Return the config of a loss, its name or a function.

    The config of `keras.losses.Huber` does not contain `delta`, so the loss
    would be loaded with the default. Such arguments are added here.
    """
    if loss is None or isinstance(loss, str):
        return loss
    config = keras.losses.serialize(loss)
    if isinstance(config, dict) and isinstance(config.get("config"), dict):
        arguments = getattr(loss, "_fn_kwargs", {})
        config["config"] = {**arguments, **config["config"]}
    return config


def deserialize(config: Any) -> Any:
    """Return the loss that `serialize` was called with."""
    if isinstance(config, dict):
        return keras.losses.deserialize(config)
    return config


def per_place(
    function: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    outputs: Tensor,
) -> Tensor:
    """Return the values of any loss, one per sample or place of the outputs.

    Args:
        function: maps `(target, outputs)` to values of any rank. Additional
            axes are averaged. A single number for the batch counts for every
            place, as in Keras; one number per sample counts for all of its
            places.
        target: labels, or the teacher's outputs.
        outputs: `(batch,)` or `(..., units)`.

    Returns:
        A tensor `(...)`: the shape of the outputs without the last axis.

    Raises:
        ValueError: if the loss requires one-hot labels and the target has class
            indices.
    """
    if len(outputs.shape) == 1:
        target, outputs = (
            _shapes.with_units(target),
            _shapes.with_units(outputs),
        )
    if is_for_one_hot(function) and len(target.shape) < len(outputs.shape):
        raise ValueError(
            "This `label_loss` requires one-hot labels. Received: "
            f"{name_of(function)} with labels of shape {tuple(target.shape)} "
            f"and outputs of shape {tuple(outputs.shape)}. Use the loss for "
            "class indices ('sparse_categorical_crossentropy'), or "
            "`keras.ops.one_hot(labels, classes)`."
        )
    values, rank = function(target, outputs), len(outputs.shape) - 1
    if len(values.shape) == 0:
        return ops.broadcast_to(values, ops.shape(outputs)[:-1])
    while len(values.shape) > rank:
        values = ops.mean(values, axis=-1)
    while len(values.shape) < rank:
        values = ops.expand_dims(values, axis=-1)
    return values


def is_sparse(loss: Any) -> bool:
    """Return whether a loss takes only class indices."""
    return "sparse" in name_of(loss).lower()


def is_for_one_hot(loss: Any) -> bool:
    """Return whether a loss is one of Keras that takes only one-hot labels."""
    loss = getattr(loss, "__self__", loss)  # `resolve` returns its `call`.
    return is_of_keras(loss) and is_for_softmax(loss) and not is_sparse(loss)


def is_for_softmax(loss: Any) -> bool:
    """Return whether a loss is for classes that exclude each other."""
    return "categorical" in name_of(loss).lower()


def as_one_hot_or_sparse(
    labels: Tensor, student_shape: Sequence[int | None]
) -> str:
    """Return `"sparse"` or `"one-hot"`, by the labels' shape.

    Args:
        labels: any tensor; only its static shape is read.
        student_shape: static shape of the student's outputs.

    Raises:
        ValueError: if the labels have neither of the two shapes.
    """
    shape, target = tuple(labels.shape), tuple(student_shape)
    places = target[:-1]
    if len(shape) == len(target) and _shapes.same_sizes(shape[:-1], places):
        if shape[-1] == target[-1]:
            return "one-hot"
        if shape[-1] == 1:
            return "sparse"
    if _shapes.same_sizes(shape, places):
        return "sparse"
    raise ValueError(
        "The labels must be class indices or have the shape of the student's "
        f"outputs. Received: labels of shape {shape}, outputs of shape "
        f"{target}. Pass class indices of shape {target[:-1]}, or one-hot "
        f"labels or probabilities of shape {target}."
    )


def cross_entropy(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Return the cross-entropy with labels, sparse or one-hot by their shape.

    Args:
        labels: class indices `(...)` or `(..., 1)`, or probabilities
            `(..., classes)`.
        student_logits: `(..., classes)`.
    """
    if as_one_hot_or_sparse(labels, student_logits.shape) == "one-hot":
        # Keras's function on TensorFlow gives rows of zeros a gradient.
        log_probs = _divergence.log_soften(student_logits, 1.0)
        return -ops.sum(ops.cast(labels, "float32") * log_probs, axis=-1)
    labels = ops.reshape(labels, ops.shape(student_logits)[:-1])
    return keras.losses.sparse_categorical_crossentropy(
        labels, student_logits, from_logits=True
    )
