"""Which models can be rebuilt."""

from keras import layers

from keras_distill._graphs._walk import check_graph
from keras_distill._graphs._walk import graphs
from keras_distill._graphs._walk import has_float_kernel
from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes
from keras_distill.compression.weights._kernels import student_of


def layers_of(model):
    """Return the layers of a model and of models in it, each once."""
    found = {
        node.operation: None for graph in graphs(model) for node in nodes(graph)
    }
    return [
        operation
        for operation in found
        if isinstance(operation, layers.Layer) and not has_graph(operation)
    ]


def check_model(caller, model):
    """Return the model to compress, of a Distiller the student.

    Raises:
        ValueError: if its layers can't be replaced one by one.
    """
    model = student_of(model)
    check_graph(caller, model)
    owners = {}
    for layer in layers_of(model):
        for variable in layer.weights:
            owner = owners.setdefault(id(variable), layer)
            if owner is not layer:
                raise ValueError(
                    f"`{caller}` can't part layers that share a variable. "
                    f"Received: {owner.name!r} and {layer.name!r} with the "
                    f"variable {variable.path!r} in common"
                )
    return model


def has_plain_kernel(layer):
    """Return whether a kernel can be replaced: floats, and free to be any."""
    return is_plain(layer) and layer.kernel_constraint is None


def is_plain(layer):
    """Return whether a layer has one kernel of floats for all channels."""
    return getattr(layer, "groups", 1) == 1 and has_float_kernel(layer)
