"""The file of a network before it is trained, to know what it will take."""

import keras
import numpy as np
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill.compression.litert._quantize_aware import quantize_aware
from keras_distill.compression.litert._quantized_layers import FakeQuantization


def as_if_trained(model: keras.Model, is_int8: bool) -> keras.Model:
    """Return a copy whose file has the size of that of the trained network.

    All weights of the copy are different, and none is zero: a file stores equal
    tensors once, and leaves out biases that are zero.

    Args:
        model: a model with a layer graph.
        is_int8: whether to return the copy that `quantize_aware` makes, with
            some range for each activation. The true ranges are not known before
            training. In very small networks, some activations are zero
            everywhere, and no interpreter takes such a range.
    """
    copy = Copier().copy(model)
    generator = np.random.default_rng(0)
    for weight in copy.weights:
        if "float" in weight.dtype:
            noise = generator.uniform(1e-4, 1e-3, weight.shape)
            weight.assign(ops.convert_to_numpy(weight) + noise)
    if not is_int8:
        return copy
    copy = quantize_aware(copy)
    # All are different, with zero off their middle: files are smaller where
    # ranges are equal or symmetric.
    for number, layer in enumerate(copy._flatten_layers()):
        if isinstance(layer, FakeQuantization) and layer.fixed_range is None:
            layer.minimum.assign(-1 - number / 100)
            layer.maximum.assign(2 + number / 50)
            layer.steps.assign(1.0)
    return copy
