"""The pairs of teacher and student that are timed."""

import typing

import keras
from keras import layers


class Pair(typing.NamedTuple):
    """Two functions that make untrained models, and a batch for both."""

    teacher: typing.Callable
    student: typing.Callable
    size: int
    batch: int
    classes: int


def cnn(widths, classes=10):
    """Two convolutions of stride 2 and a dense layer that returns logits."""
    first, second = widths
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(first, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.MaxPooling2D(2, strides=1, padding="same"),
            layers.Conv2D(second, 3, strides=2, padding="same"),
            layers.Flatten(),
            layers.Dense(classes),
        ]
    )


def resnet(depth, classes=10):
    """A CIFAR ResNet of `6 n + 2` layers (He et al. 2016, section 4.2).

    The three stages end in layers named `stage1`, `stage2` and `stage3`.
    """
    inputs = keras.Input((32, 32, 3))
    x = _convolve(inputs, 16, 3, 1)
    x = layers.ReLU()(x)
    blocks = (depth - 2) // 6
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            strides = 2 if stage > 1 and block == 0 else 1
            name = f"stage{stage}" if block == blocks - 1 else None
            x = _residual(x, width, strides, name)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x))


def _residual(x, width, strides, name):
    shortcut = x if strides == 1 else _convolve(x, width, 1, strides)
    x = layers.ReLU()(_convolve(x, width, 3, strides))
    x = _convolve(x, width, 3, 1)
    return layers.ReLU(name=name)(layers.Add()([x, shortcut]))


def _convolve(x, width, size, strides):
    x = layers.Conv2D(
        width, size, strides=strides, padding="same", use_bias=False
    )(x)
    return layers.BatchNormalization()(x)


def application(make, size, classes):
    return make(
        weights=None,
        input_shape=(size, size, 3),
        classes=classes,
        classifier_activation=None,
    )


def dense(width, classes=10):
    """A teacher that is all matrix products."""
    return keras.Sequential(
        [
            keras.Input((width,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(width, activation="relu"),
            layers.Dense(width, activation="relu"),
            layers.Dense(classes),
        ]
    )


def tiny(width):
    """A model with the names of the ResNets' stages that builds at once."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(width, 3, strides=4, name="stage2"),
            layers.BatchNormalization(),
            layers.Conv2D(4, 3, strides=2, name="stage3"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def pairs(smoke):
    """Return the pairs by name; small ones to see that everything runs."""
    applications = keras.applications
    if smoke:
        small = Pair(lambda: tiny(4), lambda: tiny(2), 32, 4, 10)
        return {"cnn": small, "resnet": small, "imagenet": small}
    return {
        "cnn": Pair(
            lambda: cnn((256, 512)), lambda: cnn((16, 32)), 32, 128, 10
        ),
        "resnet": Pair(lambda: resnet(56), lambda: resnet(20), 32, 128, 10),
        "imagenet": Pair(
            lambda: application(applications.ResNet50, 96, 100),
            lambda: application(applications.MobileNetV2, 96, 100),
            96,
            32,
            100,
        ),
    }
