"""Networks to prune that are in no package: the ResNets of CIFAR-10."""

import keras
import numpy as np
from keras import layers


def cifar_resnet(depth, shortcut, size=32):
    """The ResNet of `6 n + 2` layers; `shortcut` is "projection" or "padding".

    Source: He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2.
    """
    inputs = keras.Input((size, size, 3))
    x = layers.ReLU()(_convolve(inputs, 16, 3, 1))
    for stage, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            strides = 2 if stage and not block else 1
            y = layers.ReLU()(_convolve(x, width, 3, strides))
            y = _convolve(y, width, 3, 1)
            if strides == 2:
                narrow, widen = x.shape[-1], globals()[f"_{shortcut}"]
                x = widen(x, narrow, width)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def _convolve(x, width, window, strides):
    x = layers.Conv2D(
        width, window, strides=strides, padding="same", use_bias=False
    )(x)
    return layers.BatchNormalization()(x)


def _projection(x, narrow, width):
    return _convolve(x, width, 1, 2)


def _padding(x, narrow, width):
    """Every second pixel, between channels of zeros: a fixed convolution."""
    convolution = layers.Conv2D(
        width, 1, strides=2, use_bias=False, trainable=False
    )
    x = convolution(x)
    kernel = np.zeros((1, 1, narrow, width))
    kernel[0, 0, range(narrow), range(width // 4, width // 4 + narrow)] = 1.0
    convolution.set_weights([kernel])
    return x
