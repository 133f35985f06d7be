"""The head of a language model: what it applies to each hidden state alone."""

from typing import Any

import keras
from keras import layers
from keras.activations import softmax

from keras_distill._graphs import _outputs
from keras_distill._graphs._elementwise import is_elementwise
from keras_distill._graphs._elementwise import is_elementwise_operation
from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import node_of
from keras_distill._typing import Tensor

# Layers that act on the last axis alone.
_LAST_LAYERS = (layers.Dense, layers.ReversibleEmbedding)


class Head:
    """Maps hidden states to the outputs of a model, each on its own.

    It runs the model's own layers, with the values of weights that it is given.
    A plain object: Keras does not track its layers.

    Args:
        calls: list of the nodes of the graph, in order of computation.
        hidden: the symbolic tensor that the first one reads.
    """

    def __init__(self, calls: list[Any], hidden: keras.KerasTensor) -> None:
        self.calls, self.hidden = calls, hidden
        self.operations = [call.operation for call in calls]
        self.output = calls[-1].output_tensors[0]
        found = {
            id(variable): variable
            for call in calls
            for variable in getattr(call.operation, "variables", ())
        }
        self.variables = list(found.values())
        # A ReversibleEmbedding, for example, does not hand a mask on.
        self.keeps_masks = all(
            isinstance(call.operation, layers.Layer)
            and call.operation.compute_mask(hidden, True) is True
            for call in calls
        )

    def __call__(self, hidden: Tensor, values: list[Tensor]) -> Tensor:
        """Return the outputs for hidden states.

        Args:
            hidden: `(batch, places..., width)`.
            values: the values of `variables`.
        """
        mapping = list(zip(self.variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            for call in self.calls:
                args, kwargs = call.arguments.fill_in(
                    {id(call.input_tensors[0]): hidden}
                )
                hidden = call.operation(*args, **kwargs)
        return hidden


def split_head(model: keras.Model) -> tuple[keras.Model, Head] | None:
    """Return the model up to its last hidden states, and its head.

    The head is a `Dense` or a `ReversibleEmbedding`, and what follows it:
    activations, and layers that say `acts_on_last_axis = True`. None of them
    has an activity regularizer. All of it may be inside a nested model. Both
    parts share the layers of the model.

    Args:
        model: a Keras model.

    Returns:
        `(body, head)`, or `None` if the model does not end like this.
    """
    if not has_graph(model) or len(model.outputs) != 1:
        return None
    calls = [node_of(model.outputs[0])]
    while _acts_on_last_axis(calls[0]):
        calls.insert(0, node_of(calls[0].input_tensors[0]))
    operations = [call.operation for call in calls]
    if any(getattr(o, "activity_regularizer", None) for o in operations):
        return None
    if isinstance(operations[0], keras.Model):
        parts = split_head(operations[0])
        if parts is None:
            return None
        inner_body, inner_head = parts
        args, kwargs = calls[0].arguments.args, calls[0].arguments.kwargs
        hidden = inner_body(*args, **kwargs)
        calls[:1] = inner_head.calls
    elif isinstance(operations[0], _LAST_LAYERS):
        (hidden,) = calls[0].input_tensors
    else:
        return None
    body = keras.Model(_outputs.known_inputs(model), hidden, name=model.name)
    return body, Head(calls, hidden)


def _acts_on_last_axis(call):
    """Return whether a call changes each place of one tensor on its own."""
    operation = call.operation
    if len(call.input_tensors) != 1:
        return False
    if getattr(operation, "acts_on_last_axis", False):
        return True
    if isinstance(operation, layers.Softmax):
        return operation.axis == -1
    if isinstance(operation, layers.Activation):
        activation = operation.activation
        return activation is softmax or is_elementwise(activation)
    return is_elementwise_operation(operation)
