"""Which weights of a model are compressed, and what they are called."""

import keras

from keras_distill._graphs._layers import find_layers

# Kernels of dense, convolutional, depthwise and recurrent layers, and of layers
# of one's own that name theirs so. Never biases, normalisations, embeddings.
_KERNEL = "kernel"
# Known by the name that it is registered under: nothing of it is imported here.
_DISTILLER = "keras_distill>Distiller"


def student_of(model):
    """Return the model to compress: a Distiller's student, or the model.

    A model of another class is compressed as a whole, whatever its attributes
    are called.
    """
    classes = type(model).__mro__
    names = [keras.saving.get_registered_name(cls) for cls in classes]
    return model.student if _DISTILLER in names else model


def layers_by_weight(model):
    """Return a dict from the id of each weight to the layers around it.

    The outermost layer comes first and the layer that owns the weight last.
    """
    layers = {}
    for layer in model._flatten_layers(include_self=False):
        for weight in layer.weights:
            layers.setdefault(id(weight), []).append(layer)
    return layers


def trainable_kernels(model):
    """Return the kernels among a model's trainable weights."""
    return [
        weight
        for weight in model.trainable_variables
        if weight.name.endswith(_KERNEL) and len(weight.shape) > 1
    ]


def without(weights, model, exclude):
    """Return the weights that are in none of the layers named in `exclude`.

    Args:
        weights: list of weights.
        model: the model that they belong to.
        exclude: a name or path of a layer, or a list of them.
    """
    spared = {
        id(weight)
        for layer in find_layers(model, exclude, "exclude")
        for weight in layer.weights
    }
    return [weight for weight in weights if id(weight) not in spared]


def check_ready(model, callback):
    """Raise if `fit()` has not given the callback a model it can work on."""
    name = type(callback).__name__
    if model.optimizer is None:
        raise ValueError(
            f"{name} needs a model that is compiled with an optimizer. "
            "Received: `optimizer=None`."
        )
    if not student_of(model).built:
        raise ValueError(
            f"{name} needs a model that is built before `fit()`. Received: "
            f"{student_of(model).name!r}, which has no weights yet. Call it on "
            "a batch, or give it a `keras.Input`."
        )
