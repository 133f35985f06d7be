"""Which weights of a model are compressed, and what they are called."""

# Kernels of dense, convolutional, depthwise and recurrent layers, and of layers
# of one's own that name theirs so. Never biases, normalisations, embeddings.
_KERNEL = "kernel"


def student_of(model):
    """Return the model to compress: a Distiller's student, or the model."""
    return getattr(model, "student", model)


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
    """Return the weights that no name in `exclude` stands for.

    Args:
        weights: list of weights.
        model: the model that they belong to.
        exclude: names or paths of layers, or paths of weights.

    Raises:
        ValueError: if a name stands for nothing in the model.
    """
    layers = layers_by_weight(model)
    names = {id(weight): names_of(weight, layers) for weight in model.weights}
    known = set().union(*names.values()) if names else set()
    for name in exclude:
        if name not in known:
            own = sorted({layers[id(w)][-1].name for w in weights})
            raise ValueError(
                f"`exclude` names a layer that the model {model.name!r} does "
                f"not have. Received: {name!r}. Its layers with kernels: {own}."
            )
    return [w for w in weights if not names[id(w)] & set(exclude)]


def names_of(weight, layers):
    """Return all names that stand for a weight: its path, and its layers'."""
    own = {weight.path}
    for layer in layers.get(id(weight), ()):
        own |= {layer.name, layer.path}
    return own


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
