"""Ranges for int8 from examples, by running the Keras model.

LiteRT has its own way to find them, which is the better one: it looks at every
operation. Where it fails, these are between the layers.
"""

from keras import tree

from keras_distill.compression.litert._quantize_aware import quantize_aware
from keras_distill.compression.litert._quantize_aware import with_constants
from keras_distill.compression.litert._quantized_layers import FakeQuantization

_BATCH = 32


def calibrated(model, examples):
    """Return a copy that rounds to ranges which hold all the examples.

    Args:
        model: a functional model.
        examples: an array for each input.

    Raises:
        ValueError: as `quantize_aware` does.
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
