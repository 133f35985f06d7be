"""Selecting the weights of a model that a callback compresses."""

from collections.abc import Sequence

import keras

from keras_distill._graphs._layers import find_layers
from keras_distill.compression._models import student_of

# Kernels of dense, convolutional, depthwise and recurrent layers, and of custom
# layers that use this name. Biases, normalizations and embeddings are excluded.
_KERNEL = "kernel"


def layers_by_weight(model: keras.Model) -> dict[int, list[keras.layers.Layer]]:
    """Return a dict from the id of each weight to the layers that contain it.

    The outermost layer comes first, the layer that owns the weight last.
    """
    layers: dict[int, list[keras.layers.Layer]] = {}
    for layer in model._flatten_layers(include_self=False):
        for weight in layer.weights:
            layers.setdefault(id(weight), []).append(layer)
    return layers


def trainable_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the kernels among the trainable weights of a model."""
    return [
        weight
        for weight in model.trainable_variables
        if weight.name.endswith(_KERNEL) and len(weight.shape) > 1
    ]


def not_excluded(
    weights: list[keras.Variable],
    model: keras.Model,
    exclude: str | Sequence[str],
) -> list[keras.Variable]:
    """Return the weights without those of excluded layers.

    Args:
        weights: list of weights.
        model: the model that has these weights.
        exclude: a name or path of a layer, or a list of them.
    """
    excluded = {
        id(weight)
        for layer in find_layers(model, exclude, "exclude")
        for weight in layer.weights
    }
    return [weight for weight in weights if id(weight) not in excluded]


def check_ready(model: keras.Model, callback: keras.callbacks.Callback) -> None:
    """Raise a ValueError if a callback cannot be used with the model.

    Args:
        model: the model that `fit()` trains.
        callback: the callback, which the message names.
    """
    name = type(callback).__name__
    if model.optimizer is None:
        raise ValueError(
            f"{name} requires a model that is compiled with an optimizer. "
            "Received: `optimizer=None`. Call `compile()` with an optimizer."
        )
    if not student_of(model).built:
        raise ValueError(
            f"{name} requires a model that is built before `fit()`. Received: "
            f"{student_of(model).name!r}, which has no weights yet. Call the "
            "model on a batch, or give it a `keras.Input`."
        )
