"""Which model is compressed, and which of its layers can be replaced."""

import keras
from keras import layers

from keras_distill._graphs._walk import check_graph
from keras_distill._graphs._walk import graphs
from keras_distill._graphs._walk import has_float_kernel
from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes

# A Distiller is recognized by its registered name, because this package
# imports nothing from distillation.
_DISTILLER = "keras_distill>Distiller"


def student_of(model: keras.Model) -> keras.Model:
    """Return the student of a Distiller; other models are returned as given."""
    classes = type(model).__mro__
    names = [keras.saving.get_registered_name(cls) for cls in classes]
    return model.student if _DISTILLER in names else model


def model_to_rebuild(caller: str, model: keras.Model) -> keras.Model:
    """Return the model to rebuild layer by layer: for a Distiller, its student.

    Args:
        caller: the name of the calling function, for error messages.
        model: the model that the user gave.

    Raises:
        ValueError: if the model has no layer graph, or if layers share a
            variable.
    """
    model = student_of(model)
    check_graph(caller, model)
    owners: dict[int, layers.Layer] = {}
    for layer in layers_of(model):
        for variable in layer.weights:
            owner = owners.setdefault(id(variable), layer)
            if owner is not layer:
                raise ValueError(
                    f"`{caller}` cannot separate layers that share a variable. "
                    f"Received: {owner.name!r} and {layer.name!r}, which share "
                    f"the variable {variable.path!r}. Give each layer its own "
                    "variable."
                )
    return model


def layers_of(model: keras.Model) -> list[layers.Layer]:
    """Return the layers of a model and of its nested models, each once.

    Nested models themselves are not in the list.
    """
    found = {
        node.operation: None for graph in graphs(model) for node in nodes(graph)
    }
    return [
        operation
        for operation in found
        if isinstance(operation, layers.Layer) and not has_graph(operation)
    ]


def has_ungrouped_float_kernel(layer: layers.Layer) -> bool:
    """Return whether one float kernel connects all channels of a layer."""
    return getattr(layer, "groups", 1) == 1 and has_float_kernel(layer)


def has_replaceable_kernel(layer: layers.Layer) -> bool:
    """Return whether another kernel can take the place of a layer's kernel.

    It must be an ungrouped float kernel without a constraint.
    """
    return has_ungrouped_float_kernel(layer) and layer.kernel_constraint is None
