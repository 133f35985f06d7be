"""Elementwise functions of Keras, by name.

An elementwise function applies the same function to each value of a tensor.
"""

from typing import Any

from keras import layers

_NAMES = {
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh",
    "tanh_shrink",
    "threshold",
}
# The classes of operations are not public. These are their names.
_OPERATIONS = {name.replace("_", "") for name in _NAMES} | {
    "absolute",
    "add",
    "cast",
    "divide",
    "exp",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "sqrt",
    "square",
    "stopgradient",
    "subtract",
    "truedivide",
}

LAYERS = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.ReLU,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)


def is_elementwise(activation: Any) -> bool:
    """Return whether the `activation` of a layer is elementwise.

    Args:
        activation: a function, an activation layer, or None.
    """
    if isinstance(activation, layers.Layer):
        return type(activation) in LAYERS
    return activation is None or (
        getattr(activation, "__name__", None) in _NAMES
        and is_of_keras(activation)
    )


def is_elementwise_layer(layer: Any) -> bool:
    """Return whether a layer of Keras, or of this package, is elementwise."""
    return isinstance(layer, LAYERS) or getattr(layer, "is_elementwise", False)


def is_elementwise_operation(operation: Any) -> bool:
    """Return whether an operation of Keras is elementwise.

    It may have several inputs, as a sum does.
    """
    return (
        is_of_keras(type(operation))
        and type(operation).__name__.lower() in _OPERATIONS
    )


def is_of_keras(thing: Any) -> bool:
    """Return whether a class or function is defined in Keras."""
    return thing.__module__.split(".")[0] == "keras"
