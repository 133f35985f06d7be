"""What compares the student with the labels, beside the teacher.

Keras's losses for labels take logits or probabilities by their own argument
`from_logits`, which is `False` unless set. A distillation loss knows which of
the two the student returns, so a loss that is given by name follows it, and a
loss object that says otherwise is refused.
"""

import functools
import inspect

import keras
from keras import ops

from keras_distill.losses import _divergence
from keras_distill.losses import _shapes

# Losses of Keras for probabilities that have no `from_logits`.
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


def resolve(label_loss, from_logits, argument="label_loss"):
    """Return a function `(labels, student) -> values` for a label loss.

    Args:
        label_loss: a Keras loss, its name, or a function.
        from_logits: bool. What the student returns.
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
    """Return the loss that a name stands for; one with our `from_logits`."""
    loss = keras.losses.get(label_loss)
    named = isinstance(label_loss, str)
    if named and getattr(loss, "from_logits", None) is False and from_logits:
        return type(loss).from_config(
            {**loss.get_config(), "from_logits": True}
        )
    return loss


def check_from_logits(label_loss, from_logits, argument):
    """Raise if a loss for labels contradicts what the student returns."""
    reduction = getattr(label_loss, "reduction", "sum_over_batch_size")
    if reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            f"`{argument}` is reduced as the loss that it is a part of. "
            f"Received: {argument}={name_of(label_loss)} with reduction="
            f"{reduction!r}. Set `reduction` of the loss itself."
        )
    found = getattr(label_loss, "from_logits", None)
    if isinstance(label_loss, functools.partial):
        found = label_loss.keywords.get("from_logits")
    if found is not None and bool(found) != from_logits:
        raise ValueError(
            f"`{argument}` takes {_kind(found)} and the student returns "
            f"{_kind(from_logits)}. Received: {argument}="
            f"{name_of(label_loss)} with from_logits={bool(found)}. Make it "
            f"with `from_logits={from_logits}`."
        )
    if from_logits and _takes_probabilities(keras.losses.get(label_loss)):
        raise ValueError(
            f"`{argument}` takes probabilities and the student returns logits. "
            f"Received: {argument}={name_of(label_loss)}. End both models in "
            "an activation and use `from_logits=False`, or use a cross-entropy."
        )


def _takes_probabilities(loss):
    return is_of_keras(loss) and name_of(loss) in _FOR_PROBABILITIES


def is_of_keras(loss):
    """Tell whether a loss comes with Keras, and not from the user."""
    if isinstance(loss, functools.partial):
        return is_of_keras(loss.func)
    home = getattr(loss, "__module__", None) or type(loss).__module__
    return home.startswith("keras.")


def _kind(from_logits):
    return "logits" if from_logits else "probabilities"


def name_of(loss):
    """Return the name of a loss for labels: of its class or its function."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, functools.partial):
        return name_of(loss.func)
    return getattr(loss, "__name__", type(loss).__name__)


def _own_from_logits(function):
    """Return the parameter `from_logits` of a function, or `None`."""
    try:
        return inspect.signature(function).parameters.get("from_logits")
    except (TypeError, ValueError):
        return None  # Some callables of C have no signature.


def has_from_logits(loss):
    """Tell whether a name or a function leaves `from_logits` open."""
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(loss, functools.partial) and "from_logits" in loss.keywords:
        return False
    return (
        not isinstance(loss, keras.losses.Loss)
        and _own_from_logits(loss) is not None
    )


def serialize(loss):
    """Return the config of a loss, its name or a function.

    `keras.losses.Huber` leaves its `delta` out of its config, and would come
    back with another one. The arguments that such a loss holds are added.
    """
    if loss is None or isinstance(loss, str):
        return loss
    config = keras.losses.serialize(loss)
    if isinstance(config, dict) and isinstance(config.get("config"), dict):
        held = getattr(loss, "_fn_kwargs", {})
        config["config"] = {**held, **config["config"]}
    return config


def deserialize(config):
    """Return what `serialize` was given."""
    if isinstance(config, dict):
        return keras.losses.deserialize(config)
    return config


def per_place(function, target, outputs):
    """Return the values of any loss, one per sample or place of the outputs.

    Args:
        function: maps `(target, outputs)` to values of any rank. Further axes
            are averaged. One number for the batch counts for every place, as
            in Keras, and one per sample for all of its places.
        target: what the outputs are compared with.
        outputs: `(batch,)` or `(..., units)`.
    """
    if len(outputs.shape) == 1:
        target, outputs = (
            _shapes.with_units(target),
            _shapes.with_units(outputs),
        )
    if is_for_one_hot(function) and len(target.shape) < len(outputs.shape):
        raise ValueError(
            "`label_loss` compares one-hot labels. Received: "
            f"{name_of(function)} with labels of shape {tuple(target.shape)} "
            f"beside outputs of shape {tuple(outputs.shape)}. Use the loss for "
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


def is_sparse(loss):
    """Tell whether a loss takes class indices and nothing else."""
    return "sparse" in name_of(loss).lower()


def is_for_one_hot(loss):
    """Tell whether a loss of Keras takes one-hot labels and nothing else."""
    loss = getattr(loss, "__self__", loss)  # `resolve` returns its `call`.
    return is_of_keras(loss) and is_for_softmax(loss) and not is_sparse(loss)


def is_for_softmax(loss):
    """Tell whether a loss takes classes of which one excludes the others."""
    return "categorical" in name_of(loss).lower()


def as_one_hot_or_sparse(labels, student_shape):
    """Return `"sparse"` or `"one-hot"`, by the labels' shape.

    Raises:
        ValueError: if the labels fit neither form of the student's outputs.
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
        f"Labels of shape {shape} don't fit a student that returns {target}. "
        f"Give class indices of shape {target[:-1]}, or one-hot labels or "
        f"probabilities of shape {target}."
    )


def cross_entropy(labels, student_logits):
    """Return the cross-entropy with labels, sparse or one-hot by their shape.

    Args:
        labels: class indices `(...)` or `(..., 1)`, or probabilities
            `(..., classes)`.
        student_logits: `(..., classes)`.
    """
    if as_one_hot_or_sparse(labels, student_logits.shape) == "one-hot":
        # Not Keras's: on TensorFlow, a row of zeros would have a gradient.
        log_probs = _divergence.log_soften(student_logits, 1.0)
        return -ops.sum(ops.cast(labels, "float32") * log_probs, axis=-1)
    labels = ops.reshape(labels, ops.shape(student_logits)[:-1])
    return keras.losses.sparse_categorical_crossentropy(
        labels, student_logits, from_logits=True
    )
