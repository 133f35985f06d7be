"""Walking the layer graph of a model, in the order of computation."""

from typing import Any

import keras

# A model with another `call` may compute something else than its graph.
_CALLS_OF_GRAPHS = ("Functional.call", "Sequential.call")


def has_graph(model: Any) -> bool:
    """Return whether a model computes what its layer graph says.

    Functional models and built Sequential models do. Subclassed models have no
    layer graph.
    """
    # `outputs` of a Sequential model raises an AttributeError before it knows
    # its input.
    return (
        isinstance(model, keras.Model)
        and hasattr(model, "outputs")
        and type(model).call.__qualname__ in _CALLS_OF_GRAPHS
    )


def check_graph(caller: str, model: keras.Model) -> None:
    """Raise a ValueError if a model has no layer graph.

    Args:
        caller: the name of the calling function, for the error message.
        model: the model to check.
    """
    if not has_graph(model):
        raise ValueError(
            f"`{caller}` requires a functional model, or a Sequential model "
            "with an input. Subclassed models have no layer graph: pass the "
            f"functional part of the model. Received: model={model!r} of type "
            f"{type(model).__name__}"
        )


def has_float_kernel(layer: keras.layers.Layer) -> bool:
    """Return whether a layer's kernel, if any, is a single float variable.

    The kernel of a layer that is quantized or has LoRA is not.
    """
    return not (
        getattr(layer, "lora_enabled", False)
        or getattr(layer, "quantization_mode", None)
    )


def nodes(graph: keras.Model) -> list[Any]:
    """Return the calls (nodes) that lead to the outputs of a model, each once.

    A call comes after the calls that it reads from.

    The model's own lists cannot be used: the inbound nodes of a layer also
    include its calls in other models, and calls from before a Sequential model
    got its next layer.
    """
    found: dict[int, Any] = {}
    waiting = [node_of(tensor) for tensor in graph.outputs]
    while waiting:
        node = waiting[-1]
        read = [node_of(tensor) for tensor in node.input_tensors]
        missing = [other for other in read if id(other) not in found]
        if missing:
            waiting += missing
        else:
            found[id(waiting.pop())] = node
    return list(found.values())


def node_of(tensor: keras.KerasTensor) -> Any:
    """Return the call (node) that returned a symbolic tensor."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def graphs(model: keras.Model) -> list[keras.Model]:
    """Return a model and all models nested in it, each once."""
    found: dict[int, keras.Model] = {}
    waiting = [model]
    while waiting:
        graph = waiting.pop()
        if id(graph) not in found:
            found[id(graph)] = graph
            inside = [node.operation for node in nodes(graph)]
            waiting += filter(has_graph, inside)
    return list(found.values())
