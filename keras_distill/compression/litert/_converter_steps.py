"""The steps from a model to a LiteRT file that was run: in TensorFlow.

They run where `_converter.py` says: in the process of the caller, or in one of
their own.
"""

import warnings

import numpy as np
from keras import tree

SIGNATURE = "serving_default"
# What runs a part of the graph many times.
_LOOPS = {"StatelessWhile", "While"}


class LoopError(Exception):
    """Raised where ranges for int8 are asked of a model with a loop in it."""


def trace(model, names, folder):
    """Write a SavedModel that takes one example.

    Args:
        model: a model with a graph, on TensorFlow.
        names: of its inputs.
        folder: where to write.

    Returns:
        The set of the kinds of TensorFlow's operations in it.
    """
    import tensorflow as tf

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name)
            for tensor, name in zip(model.inputs, names)
        ],
    )
    def serve(*tensors):
        inputs = tree.pack_sequence_as(model.input, tensors)
        outputs = tree.flatten(model(inputs, training=False))
        return {f"output_{i}": output for i, output in enumerate(outputs)}

    module = tf.Module()
    module.serve = serve
    module.weights = [variable.value for variable in model.variables]
    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: serve})
    graph = serve.get_concrete_function().graph.as_graph_def()
    functions = [function.node_def for function in graph.library.function]
    return {node.op for part in (graph.node, *functions) for node in part}


def check_loops(operations, examples):
    """Raise a LoopError if ranges can't be taken from examples.

    Where there is a loop, TensorFlow looks for them in memory that is not its
    own, and dies.
    """
    if examples is not None and _LOOPS.intersection(operations):
        raise LoopError


def convert(folder, names, precision, examples):
    """Return the bytes of a LiteRT file.

    Args:
        folder: of the SavedModel that `trace` wrote.
        names: of the inputs.
        precision: as in `export_litert`.
        examples: None, or an array for each input, from which an int8 file gets
            its ranges. Without, it has those of the FakeQuantization layers.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if examples is not None:
        converter.representative_dataset = lambda: (
            {name: array[None] for name, array in zip(names, arrays)}
            for arrays in zip(*examples)
        )
    with warnings.catch_warnings():
        # It calibrates with an interpreter that warns of its age.
        warnings.simplefilter("ignore")
        return converter.convert()


def run(content, names, inputs):
    """Return the outputs of a LiteRT file, as a list of arrays.

    Args:
        content: the bytes of the file.
        names: of the inputs.
        inputs: an array of examples for each of them.
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner(SIGNATURE)
    results = [
        runner(**{name: array[None] for name, array in zip(names, arrays)})
        for arrays in zip(*inputs)
    ]
    return [
        np.concatenate([result[f"output_{i}"] for result in results])
        for i in range(len(results[0]))
    ]
