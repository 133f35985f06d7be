"""Graphs of layers: walked in the order of computation, and built anew.

Nothing is changed in the model that was given. A copy is built layer by layer
from their configs, some of them replaced, and the weights are carried over.
"""

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

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


class Copier:
    """Copies graphs and keeps what is shared in them shared.

    Args:
        replace: a function of a layer. It returns the new layers that take its
            place, as a list, each of them called on what the one before
            returned; or None for a copy as it is. The layer itself in that
            list stands for its copy. Otherwise the caller gives weights to
            what it put in place; `replaced` has it as `{layer: [new layers]}`.
        shape_of: a function that returns the shape that a graph's input tensor
            has in the copy. Default: as it is.
        dtype: the dtype policy of all layers copied that compute in floats.
            Default: as it is.
    """

    def __init__(
        self, replace, shape_of=lambda tensor: tensor.shape, dtype=None
    ):
        self.replace = replace
        self.shape_of = shape_of
        self.dtype = dtype
        self.replaced = {}
        self.copied = {}
        self._new = {}

    def copy(self, model):
        """Return the copy of a model, with the weights of what was copied."""
        copy = self._graph(model)
        for original, new in self.copied.items():
            if isinstance(original, layers.Layer) and not has_graph(original):
                _carry_over(original, new)
        return copy

    def _graph(self, model):
        options = {"name": model.name, "trainable": model.trainable}
        if isinstance(model, keras.Sequential):
            stack = [self._new_input(model.inputs[0])]
            for layer in model.layers:
                stack += self._new_layers(layer)
            return keras.Sequential(stack, **options)
        # `clone_model` would compile the copy of a compiled model too.
        plain = keras.Model(model.input, model.output)
        clone = keras.models.clone_model(
            plain,
            input_tensors=tree.map_structure(self._new_input, plain.input),
            clone_function=self._new_operation,
        )
        # Given to the constructor, `trainable` does not reach the layers, which
        # have flags of their own.
        return keras.Model(clone.input, clone.output, **options)

    def _new_input(self, tensor):
        return keras.Input(
            batch_shape=self.shape_of(tensor),
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=tensor.name,
            optional=getattr(tensor._keras_history[0], "optional", False),
        )

    def _new_operation(self, original):
        new = self._new_layers(original)
        return new[0] if len(new) == 1 else _chain(new)

    def _new_layers(self, original):
        if original not in self._new:
            new = None if has_graph(original) else self.replace(original)
            if new is None:
                new = [original]
            if original in new:
                self.copied[original] = self._plain_copy(original)
            else:
                self.replaced[original] = new
            self._new[original] = [self.copied.get(x, x) for x in new]
        return self._new[original]

    def _plain_copy(self, original):
        if has_graph(original):
            return self._graph(original)
        if self.dtype and "float" in getattr(original, "compute_dtype", ""):
            return new_layer(original, dtype=self.dtype)
        return new_layer(original)


def new_layer(original, **changes):
    """Return a new layer with the config of another, apart from `changes`."""
    try:
        config = original.get_config() | changes
        return original.__class__.from_config(config)
    except Exception as error:
        raise ValueError(
            f"The layer {original.name!r}, {original!r}, can't be built anew "
            "from its config. A layer of your own needs a `get_config` with "
            "all arguments of its `__init__`; a Lambda can be replaced by an "
            f"operation or a layer of your own. The reason was: {error}"
        ) from error


def _chain(new):
    def call(inputs, *args, **kwargs):
        for layer in new:
            inputs = layer(inputs, *args, **kwargs)
            args, kwargs = (), {}
        return inputs

    return call


def _carry_over(original, copy):
    # As in saving, because some layers compute things from loaded weights.
    carry_over_flags(original, copy)
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        store = {}
        old.save_own_variables(store)
        # Through arrays of their own: on JAX, an array that two variables held
        # would be donated by one of them.
        new.load_own_variables(
            {k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()}
        )


def carry_over_flags(original, copy):
    """Give a layer of the same structure the `trainable` flags of another."""
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
