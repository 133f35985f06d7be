"""What several tests share: small models, data, and gradients."""

import contextlib

import hypothesis
import keras
import numpy as np
from keras import layers

BACKEND = keras.backend.backend()
IS_KERAS_3_14 = keras.__version__.startswith("3.14.")
CLASSES = 5


def examples(number):
    """Return a number of generated examples, or the share of each backend.

    Args:
        number: int, the number without `--share-parameters`.
    """
    complete = hypothesis.settings.get_profile("all").max_examples
    return number * hypothesis.settings().max_examples // complete


def to_numpy(values):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, values)


def mlp(units=4, inputs=6, classes=CLASSES, activation=None, name=None):
    """A dense model of two layers on vectors."""
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            layers.Dense(units, activation="relu"),
            layers.Dense(classes, activation=activation),
        ],
        name=name,
    )


def cnn(width=2, size=8, channels=1, classes=CLASSES, name=None):
    """A convolutional model with the layers that carry state."""
    return keras.Sequential(
        [
            keras.Input((size, size, channels)),
            layers.Conv2D(width, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ],
        name=name,
    )


def vectors(count=32, inputs=6, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, inputs)).astype("float32")
    y = generator.integers(0, CLASSES, size=count).astype("int32")
    return x, y


def images(count=16, size=8, channels=1, seed=0, dtype="float32"):
    generator = np.random.default_rng(seed)
    x = generator.uniform(0, 255, size=(count, size, size, channels))
    y = generator.integers(0, CLASSES, size=count).astype("int32")
    return x.astype(dtype), y


def weights_of(model):
    return [np.array(to_numpy(variable.value)) for variable in model.variables]


def same_weights(first, second, tolerance=0.0):
    return len(first) == len(second) and all(
        np.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(first, second)
    )


def same_outputs(model, copy, tolerance=1e-5):
    """Assert that two models compute the same, which is not zero."""
    x = np.random.default_rng(1).normal(size=(3, *model.input_shape[1:]))
    expected, answer = to_numpy(model(x)), to_numpy(copy(x))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(answer, expected, rtol=0, atol=tolerance)


class StopAfterTwoEpochs(keras.callbacks.Callback):
    """Ends a `fit()` as Ctrl-C would."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise InterruptedError


def value_and_gradient(function, x):
    """Return `function(x)`, a scalar, and its gradient, as NumPy."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x)
    elif BACKEND == "jax":
        import jax

        value, gradient = jax.jit(jax.value_and_grad(function))(x)
    else:
        import torch

        x = torch.tensor(x, requires_grad=True)
        value = function(x)
        value.backward()
        gradient = x.grad
    if BACKEND == "torch":
        value = value.detach()
    return to_numpy(value), to_numpy(gradient)


class Recorder:
    """A callable teacher or preprocessing that counts how often it ran."""

    def __init__(self, function):
        self.function = function
        self.calls = 0

    def __call__(self, inputs):
        self.calls += 1
        return self.function(inputs)


class Probe(keras.layers.Layer):
    """Keeps the sum of what it last saw, as an input of the loss would be."""

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.seen = self.add_weight(
            shape=shape, initializer="zeros", trainable=False, name="seen"
        )

    def call(self, inputs):
        self.seen.assign(keras.ops.cast(inputs, "float32"))
        return inputs


class Subclassed(keras.Model):
    """A model that does not show which layer follows which."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


class Tied(layers.Layer):
    """Multiplies by the kernel of another layer, transposed."""

    def __init__(self, other, **kwargs):
        super().__init__(**kwargs)
        self.other = other

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.other.kernel))


@contextlib.contextmanager
def in_float64():
    """Let new models compute in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with _long_floats():
            yield
    finally:
        keras.config.set_floatx("float32")


def _long_floats():
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax
    import jax.experimental

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)  # JAX 0.7


def with_tied_layers():
    """A model of which two layers share a variable."""
    inputs = keras.Input((5,))
    dense = layers.Dense(4, name="dense")
    return keras.Model(inputs, Tied(dense, name="tied")(dense(inputs)))
