"""The calls of one inference, in order, with the shapes that they have then."""

import typing

import keras
from keras import tree

from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes


class Call(typing.NamedTuple):
    """One operation at work. A tensor that is read again is the same object.

    Attributes:
        operation: a layer that is no model, or an operation of `keras.ops`.
        arguments: `(args, kwargs)`, with symbolic tensors of a batch of one.
        outputs: list of such tensors.
    """

    operation: keras.Operation
    arguments: tuple
    outputs: list

    @property
    def inputs(self):
        """The tensors among the arguments."""
        return [
            leaf
            for leaf in tree.flatten(self.arguments)
            if isinstance(leaf, keras.KerasTensor)
        ]


class Inference(typing.NamedTuple):
    """What a model does with one sample: lists of tensors and of calls."""

    inputs: list
    calls: list
    outputs: list


def infer(model):
    """Return the inference of a model with a graph, those inside included.

    Nothing is computed: the shapes are worked out anew along the graph. The
    ones that its tensors carry may be unknown in models that are called inside
    of others.
    """
    inputs = [
        keras.KerasTensor((1, *tensor.shape[1:]), tensor.dtype)
        for tensor in model.inputs
    ]
    calls = []
    return Inference(inputs, calls, _follow(model, inputs, calls))


def _follow(graph, inputs, calls):
    """Return the outputs of a graph, and append its calls to `calls`."""
    known = {id(old): new for old, new in zip(graph.inputs, inputs)}
    for node in nodes(graph):
        if not node.input_tensors:
            continue
        args, kwargs = node.arguments.fill_in(known)
        call = Call(node.operation, (args, kwargs), [])
        if has_graph(call.operation):
            outputs = _follow(call.operation, call.inputs, calls)
        else:
            outputs = call.operation.compute_output_spec(*args, **kwargs)
            call.outputs.extend(tree.flatten(outputs))
            calls.append(call)
            outputs = call.outputs
        known.update(zip(map(id, node.output_tensors), outputs))
    return [known[id(tensor)] for tensor in graph.outputs]
