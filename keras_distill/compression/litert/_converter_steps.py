"""The steps from a Keras model to a LiteRT file, which require TensorFlow.

They run in the caller's process or in a second one; see `_converter.py`.
"""

import pathlib
import warnings
from collections.abc import Iterable

import keras
import numpy as np
from keras import tree

from keras_distill.compression.litert._interpreter import SIGNATURE

# The kinds of operations that are loops.
_LOOPS = {"StatelessWhile", "While"}


class LoopError(Exception):
    """Raised if a model with a loop must be calibrated for int8."""


def trace(
    model: keras.Model, names: list[str], folder: pathlib.Path
) -> set[str]:
    """Write a SavedModel with batch size 1.

    Args:
        model: a model with a layer graph, on TensorFlow.
        names: the names of its inputs.
        folder: the folder of the SavedModel.

    Returns:
        The kinds of TensorFlow operations in it.
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


def check_loops(
    operations: Iterable[str], examples: list[np.ndarray] | None
) -> None:
    """Raise a LoopError if LiteRT cannot calibrate a model with examples.

    If the model has a loop, LiteRT's calibration reads invalid memory and
    crashes.
    """
    if examples is not None and _LOOPS.intersection(operations):
        raise LoopError


def convert(
    folder: pathlib.Path,
    names: list[str],
    precision: str,
    examples: list[np.ndarray] | None,
    io_dtype: str,
) -> bytes:
    """Return the bytes of a LiteRT file.

    Args:
        folder: the folder of the SavedModel that `trace` wrote.
        names: the names of the inputs.
        precision: as in `export_litert`.
        examples: an array for each input, which determine the ranges of an int8
            file; or None, to take the ranges of the FakeQuantization layers.
        io_dtype: as in `export_litert`.
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
    if io_dtype == "int8":
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        # For calibration it uses an interpreter that is deprecated.
        warnings.simplefilter("ignore")
        return converter.convert()
