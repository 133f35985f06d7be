"""Reference for channel pruning: the original model with masked channels.

It does not use the package. All entries of a variable are different, so the
weights of the pruned model show which entries of the original were kept. The
other entries are set to zero: filters and normalizations of removed channels,
and the rows of kernels that read them.
"""

import functools
import zlib

import keras
import numpy as np
from keras import layers

RANGES = {
    "gamma": (0.5, 1.5),
    "beta": (-0.5, 0.5),
    "bias": (-0.1, 0.1),
    "alpha": (-0.5, 0.5),
    "moving_mean": (-0.5, 0.5),
    "moving_variance": (0.5, 2.0),
}


def scores(layer):
    """Return scores of channels that depend only on the layer's name."""
    for name in ("filters", "units", "output_dim", "num_heads"):
        if hasattr(layer, name):
            seed = zlib.crc32(layer.name.encode())
            generator = np.random.default_rng(seed)
            return generator.permutation(getattr(layer, name))


def largest_difference(model, prune):
    """Return the largest difference from the masked model, and the pruned one.

    The difference is relative to the standard deviation of the outputs over the
    batch, so that small outputs are compared strictly too.

    Args:
        model: the model. Its weights are replaced, except those of frozen
            layers.
        prune: a function that prunes the model independently of its weights.
    """
    inputs = inputs_for(model)
    frozen = _frozen(model)
    with_distinct_weights(model)
    whole = outputs_of(model, inputs)
    mask(model, prune(model))
    for variable, value in frozen:
        variable.assign(value * (_numpy(variable) != 0))
    calibrate(model, inputs)
    small = prune(model)
    masked = outputs_of(model, inputs)
    if small.count_params() < model.count_params():
        assert distance(whole, masked) > 1e-3
    return distance(outputs_of(small, inputs), masked), small


def distance(outputs, expected):
    """Return the largest difference of outputs, in standard deviations."""
    differences = []
    for output, target in zip(outputs, expected, strict=True):
        spread = np.std(target, axis=0).max()
        assert spread > 1e-6 and np.isfinite(target).all()
        differences.append(np.abs(output - target).max() / spread)
    return max(differences)


def _frozen(model):
    return [
        (variable, _numpy(variable))
        for layer in model._flatten_layers()
        if not layer.trainable
        for variable in layer.weights
    ]


def with_distinct_weights(model, seed=0):
    """Give each variable distinct entries of a typical size."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        # Normalization layers cache these.
        if variable.name in ("mean", "variance", "count"):
            continue
        high = (6.0 / _fan_in(variable.shape)) ** 0.5
        low, high = RANGES.get(variable.name, (-high, 0.99 * high))
        count = int(np.prod(variable.shape))
        values = np.linspace(low, high, count, dtype="float32")
        generator.shuffle(values)
        variable.assign(values.reshape(variable.shape))
    return model


def _fan_in(shape):
    # The last axis of a depthwise kernel is its multiplier.
    depthwise = len(shape) > 2 and shape[-1] == 1
    return np.prod(shape[:-2] if depthwise else shape[:-1] or 1)


def mask(model, small):
    """Set the entries of `model` to zero that `small` does not have."""
    for old, new in zip(model.weights, small.weights, strict=True):
        if old.shape != new.shape:
            values = _numpy(old)
            assert len(np.unique(values)) == values.size
            found = np.isin(values, _numpy(new))
            assert found.sum() == np.prod(new.shape)
            old.assign(np.where(found, values, 0))


def calibrate(model, inputs):
    """Set the statistics of BatchNormalizations to those of the inputs.

    With other statistics, the signal of a deep model vanishes.
    """
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    _call(model, inputs, training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def inputs_for(model, count=8):
    generator = np.random.default_rng(1)
    rescaled = any(isinstance(x, layers.Rescaling) for x in model.layers)

    def draw(tensor):
        shape = (count, *(length or 6 for length in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return generator.integers(0, 5, shape).astype(tensor.dtype)
        size = 100.0 if rescaled else 1.0
        return generator.normal(0, size, shape).astype(tensor.dtype)

    tensors = model.input if hasattr(model, "input") else model.inputs[0]
    return keras.tree.map_structure(draw, tensors)


def outputs_of(model, inputs):
    outputs = keras.tree.flatten(_call(model, inputs, training=False))
    return [_numpy(output) for output in outputs]


def _call(model, inputs, training):
    if keras.backend.backend() != "jax":
        return model(inputs, training=training)
    # One compilation instead of one for each operation and shape.
    outputs, state = _compiled(model, training)(
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
        inputs,
    )
    for variable, value in zip(model.non_trainable_variables, state):
        variable.assign(value)
    return outputs


@functools.lru_cache(maxsize=4)
def _compiled(model, training):
    import jax

    return jax.jit(functools.partial(model.stateless_call, training=training))


def _numpy(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))
