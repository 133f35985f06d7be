"""Functions that are the same at every place, by name."""

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
# Operations have no public class. This is what theirs are called.
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


def is_elementwise(activation):
    """Return whether an `activation`, as layers have it, is such a function."""
    if isinstance(activation, layers.Layer):
        return type(activation) in LAYERS
    return activation is None or (
        getattr(activation, "__name__", None) in _NAMES
        and is_of_keras(activation)
    )


def is_elementwise_operation(operation):
    """Return whether an operation is such a function, of any arity."""
    return (
        is_of_keras(type(operation))
        and type(operation).__name__.lower() in _OPERATIONS
    )


def is_of_keras(thing):
    """Return whether a class or function is one of Keras's own."""
    return thing.__module__.split(".")[0] == "keras"
