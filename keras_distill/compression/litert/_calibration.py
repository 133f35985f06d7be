"""Calibration: ranges for int8 from examples, by running the Keras model.

LiteRT's own calibration is better, because it finds a range for each operation.
Where it fails, this one finds ranges between the layers.
"""

import keras
import numpy as np
from keras import tree

from keras_distill.compression.litert._quantize_aware import quantize_aware
from keras_distill.compression.litert._quantize_aware import with_constants
from keras_distill.compression.litert._quantized_layers import FakeQuantization

_BATCH = 32


def calibrated(model: keras.Model, examples: list[np.ndarray]) -> keras.Model:
    """Return a copy that rounds activations to the ranges of the examples.

    Args:
        model: a functional model.
        examples: an array for each input.

    Raises:
        ValueError: as `quantize_aware`.
    """
    copy = quantize_aware(model)
    ranges = [
        layer
        for layer in copy._flatten_layers()
        if type(layer) is FakeQuantization
    ]
    for layer in ranges:
        layer.is_calibrating = True
    for start in range(0, len(examples[0]), _BATCH):
        batch = [array[start : start + _BATCH] for array in examples]
        copy(tree.pack_sequence_as(copy.input, batch), training=False)
    return with_constants(copy)
