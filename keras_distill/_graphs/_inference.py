"""The calls of one inference of a model, with symbolic tensors."""

from typing import NamedTuple

import keras
from keras import tree

from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes


class Call(NamedTuple):
    """One call of a layer or operation.

    A tensor that several calls read is the same object in each of them.

    Attributes:
        operation: a layer that is not a model, or an operation of `keras.ops`.
        arguments: `(args, kwargs)`, with symbolic tensors of batch size 1.
        outputs: list of such tensors.
    """

    operation: keras.Operation
    arguments: tuple
    outputs: list

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments."""
        return [
            leaf
            for leaf in tree.flatten(self.arguments)
            if isinstance(leaf, keras.KerasTensor)
        ]


class Inference(NamedTuple):
    """The computation of a model for one sample.

    Attributes:
        inputs: list of the input tensors.
        calls: list of `Call`, in order of computation.
        outputs: list of the output tensors.
    """

    inputs: list
    calls: list
    outputs: list


def infer(model: keras.Model) -> Inference:
    """Return the inference of a model, with the calls in nested models.

    Nothing is computed. Shapes are inferred again along the graph, because the
    tensors of nested models may have unknown shapes.
    """
    inputs = [
        keras.KerasTensor((1, *tensor.shape[1:]), tensor.dtype)
        for tensor in model.inputs
    ]
    calls: list[Call] = []
    return Inference(inputs, calls, _follow(model, inputs, calls))


def calls_for(
    operation: keras.Operation, inputs: keras.KerasTensor
) -> list[Call]:
    """Return the calls that an operation makes for inputs.

    Args:
        operation: a layer, a model or another operation.
        inputs: a symbolic tensor of batch size 1.
    """
    calls: list[Call] = []
    _outputs_of(Call(operation, ((inputs,), {}), []), calls)
    return calls


def _follow(graph, inputs, calls):
    """Return the outputs of a graph, and append its calls to `calls`."""
    known = {id(old): new for old, new in zip(graph.inputs, inputs)}
    for node in nodes(graph):
        if not node.input_tensors:
            continue
        call = Call(node.operation, node.arguments.fill_in(known), [])
        outputs = _outputs_of(call, calls)
        known.update(zip(map(id, node.output_tensors), outputs))
    return [known[id(tensor)] for tensor in graph.outputs]


def _outputs_of(call, calls):
    """Return the outputs of a call; append it, or those in its model."""
    if has_graph(call.operation):
        return _follow(call.operation, call.inputs, calls)
    args, kwargs = call.arguments
    outputs = call.operation.compute_output_spec(*args, **kwargs)
    call.outputs.extend(tree.flatten(outputs))
    calls.append(call)
    return call.outputs
