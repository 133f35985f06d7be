"""A model with coupled layers, in a nested model and outside of it."""

import keras
from keras import layers

IMAGE = (6, 6, 3)


def conv(width, name):
    return layers.Conv2D(width, 3, padding="same", name=name)


def backbone():
    """`stem` and `second` are added, so they lose the same channels."""
    inputs = keras.Input(IMAGE)
    x = conv(8, "stem")(inputs)
    y = layers.ReLU()(conv(8, "first")(x))
    x = layers.Add()([x, conv(8, "second")(y)])
    return keras.Model(inputs, layers.ReLU()(x), name="backbone")


def classifier():
    inputs = keras.Input(IMAGE)
    x = layers.GlobalAveragePooling2D()(backbone()(inputs))
    x = layers.LayerNormalization(name="norm")(
        layers.Dense(8, name="hidden")(x)
    )
    x = layers.Dense(8, activation="relu", name="last")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def widths(model):
    return {
        layer.name: layer.kernel.shape[-1]
        for layer in model._flatten_layers()
        if hasattr(layer, "kernel")
    }


WHOLE = dict(stem=8, first=8, second=8, hidden=8, last=8, logits=3)
