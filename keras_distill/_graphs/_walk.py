"""Walking the layer graph of a model, in the order of computation."""

import keras

# What a model computes only if it leaves `call` to Keras.
_CALLS_OF_GRAPHS = ("Functional.call", "Sequential.call")


def has_graph(model):
    """Return whether it can be seen which layer follows which."""
    # `outputs` of a Sequential model raises an AttributeError before it knows
    # its input.
    return (
        isinstance(model, keras.Model)
        and hasattr(model, "outputs")
        and type(model).call.__qualname__ in _CALLS_OF_GRAPHS
    )


def check_graph(caller, model):
    """Raise a ValueError in the name of `caller` if a model has no graph."""
    if not has_graph(model):
        raise ValueError(
            f"`{caller}` needs a functional model, or a Sequential model "
            "with an input: in others it can't be seen which layer follows "
            "which. If parts of your model are such, give it these. "
            f"Received: model={model!r} of type {type(model).__name__}"
        )


def has_float_kernel(layer):
    """Return whether a layer's kernel, if any, is one variable of floats."""
    return not (
        getattr(layer, "lora_enabled", False)
        or getattr(layer, "quantization_mode", None)
    )


def nodes(graph):
    """Return the calls that lead to the outputs of a model, each once.

    A call comes after those that it reads from. The list of a layer's calls is
    no help here: it has calls from other models too, and from the time before a
    Sequential model got its next layer.
    """
    found, waiting = {}, [_node_of(tensor) for tensor in graph.outputs]
    while waiting:
        node = waiting[-1]
        read = [_node_of(tensor) for tensor in node.input_tensors]
        missing = [other for other in read if id(other) not in found]
        if missing:
            waiting += missing
        else:
            found[id(waiting.pop())] = node
    return list(found.values())


def _node_of(tensor):
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def graphs(model):
    """Return the model and all models in it, each once."""
    found, waiting = {}, [model]
    while waiting:
        graph = waiting.pop()
        if id(graph) not in found:
            found[id(graph)] = graph
            inside = [node.operation for node in nodes(graph)]
            waiting += filter(has_graph, inside)
    return list(found.values())
