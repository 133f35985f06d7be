"""`export_litert`: write a file for phones and microcontrollers, and test it.

LiteRT was called TensorFlow Lite. These features of LiteRT are not supported:
training on the device, inputs of unknown shape, and batches.
"""

import os
import warnings
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_distill import _files
from keras_distill._graphs._copier import Copier
from keras_distill._graphs._walk import check_graph
from keras_distill.compression._models import layers_of
from keras_distill.compression._models import student_of
from keras_distill.compression.litert._c_array import c_array as as_c_array
from keras_distill.compression.litert._calibration import calibrated
from keras_distill.compression.litert._converter import convert
from keras_distill.compression.litert._converter_steps import LoopError
from keras_distill.compression.litert._file_contents import notes_on
from keras_distill.compression.litert._quantize_aware import (
    is_quantization_aware,
)
from keras_distill.compression.litert._quantize_aware import with_constants

_LOOKUPS = (
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
PRECISIONS = ("float32", "float16", "dynamic_int8", "int8")
_NUM_EXAMPLES = 512
_NUM_RANDOM = 8
_NUM_COMPARED = 16
# Relative to the largest output, for files without 8-bit values. On a CPU, the
# difference is 1e-6. With convolutions in TF32, the default on GPUs, it is
# 1e-3. A kernel in float16 adds 5e-4, and errors add up over layers.
_TOLERANCES = {"float32": 5e-3, "float16": 5e-2}


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    precision: str = "float32",
    representative_data: Any = None,
    *,
    io_dtype: str = "float32",
    c_array: str | os.PathLike[str] | None = None,
) -> None:
    """Write a model as a LiteRT file (`.tflite`), from any backend.

    The file takes one example at a time, with inputs of shape `(1, ...)`,
    because small devices plan their memory in advance. Inputs and outputs are
    in `io_dtype`, or integers where the model has integers. The file computes
    the model with `training=False`, without dropout and random augmentation.
    For a `Distiller`, it contains the student only. Its signature
    `"serving_default"` has the names of the model's inputs, and returns
    `"output_0"`, `"output_1"` and so on, in the order of
    `keras.tree.flatten(model.output)`.

    Precisions:

    - `"float32"`: the weights are not changed.
    - `"float16"`: kernels in 16 bits, half the size. Processors without
      float16 compute in float32.
    - `"dynamic_int8"`: large kernels in 8 bits, a quarter of the size.
      Activations are quantized when the file runs.
    - `"int8"`: kernels and activations in 8 bits, for processors without
      floats. Operations without an int8 form stay in float32, such as recurrent
      layers and other loops. A warning names them and the reason. The ranges
      of activations come from `representative_data`, or from training the copy
      that `quantize_aware` returns.

    The file is tested in the LiteRT interpreter before it replaces an older
    one. Converter and interpreter are native code, which may crash. So they run
    in a second Python process, which takes a few seconds. Only on TensorFlow,
    models with the operations of common convolutional networks and transformers
    are converted in this process. On other backends, the second process builds
    the model again on TensorFlow.

    Args:
        model: a built functional or Sequential model with any dtype policy, or
            a `Distiller`. It is not changed.
        path: path of the file. An older file is replaced after the new one was
            written and tested.
        precision: one of the precisions above.
        representative_data: inputs as in training, required for `"int8"`: an
            array, a dict of arrays by input name, or a `tf.data.Dataset` or
            other iterable of such batches. If a batch is a tuple, such as
            `(x, y)`, its first part is used. The first 512 examples are used.
            The file is tested on a few of them, or on random numbers.
        io_dtype: `"float32"` or, with the precision `"int8"`, `"int8"`: the
            dtype of inputs and outputs. In int8, a value stands for
            `scale * (value - zero_point)`; the file contains both numbers.
        c_array: path of a C or C++ file, such as `"student.h"`, to write as
            well: the bytes of the LiteRT file as an array, and the scale and
            zero point of each input and output in int8.

    Raises:
        ImportError: if LiteRT is not installed.
        ValueError: if the model has no layer graph, inputs of unknown shape,
            lookup layers or stateful layers, or if an argument is not as
            described.
        RuntimeError: if the model cannot be converted (the message names the
            operation that LiteRT does not have); if the converter crashes; or
            if the outputs of the file differ from those of the model. The
            tolerance is 0.5 % of the largest output in float32, and 5 % in
            float16. In 8 bits, the outputs must be finite, and the mean
            difference must be below half of their range.

    Example:

    ```python
    import keras
    from keras_distill.compression import export_litert

    student = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    export_litert(student, "student.tflite", precision="dynamic_int8")
    ```
    """
    notes = write_litert(
        model, path, precision, representative_data, io_dtype, c_array
    )
    for note in notes:
        warnings.warn(note, stacklevel=2)


def write_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    precision: str,
    representative_data: Any,
    io_dtype: str = "float32",
    c_array: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Export a model as `export_litert`, and return warnings instead."""
    check_installed()
    path = _files.writable(path)
    code_path = None if c_array is None else _files.writable(c_array)
    model = student_of(model)
    _check_model(model)
    if isinstance(model, keras.Sequential):
        # It may have no `input` before its first call.
        model = keras.Model(model.inputs[0], model.outputs[0])
    aware = is_quantization_aware(model)
    _check_precision(precision, aware, representative_data)
    _check_io_dtype(io_dtype, precision)
    examples = examples_of(model, representative_data)
    plain = _in_float32(with_constants(model) if aware else model)
    # Spread over the data, which may be sorted by class.
    step = -(-len(examples[0]) // _NUM_COMPARED)
    test_inputs = [array[::step] for array in examples]
    needs_ranges = precision == "int8" and not aware
    try:
        content, outputs = convert(
            plain,
            precision,
            examples if needs_ranges else None,
            test_inputs,
            io_dtype,
        )
    except LoopError:
        with_ranges = _calibrated(plain, examples)
        aware = True
        content, outputs = convert(
            with_ranges, precision, None, test_inputs, io_dtype
        )
    _check_outputs(outputs, plain, precision, test_inputs)
    _files.write(path, lambda out: out.write(content))
    if code_path is not None:
        code = as_c_array(content, code_path.name).encode()
        _files.write(code_path, lambda out: out.write(code))
    return notes_on(content, plain, aware) if precision == "int8" else []


def check_installed() -> None:
    """Raise an ImportError unless LiteRT is installed."""
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`export_litert` requires LiteRT to test the file. Install it "
            "with: pip install 'keras-distill[litert]'"
        ) from error


def _check_model(model):
    check_graph("export_litert", model)
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "`export_litert` requires inputs of known shape, apart from "
                "the batch size. Build the model with a `keras.Input` of the "
                "size used on the device. "
                f"Received: the input {tensor.name!r} of shape {tensor.shape}"
            )
    for layer in model._flatten_layers():
        if isinstance(layer, _LOOKUPS):
            raise ValueError(
                "A LiteRT file cannot store the table of a lookup layer. "
                "Export the part of the model after it, and do the lookup on "
                f"the device. Received: {layer.name!r}, {layer!r}"
            )
        if getattr(layer, "stateful", False):
            raise ValueError(
                "A LiteRT file cannot keep state between calls. Build the "
                "model with `stateful=False`, or with the states as inputs and "
                f"outputs. Received: {layer.name!r} with `stateful=True`"
            )


def _check_precision(precision, aware, representative_data):
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {PRECISIONS}. "
            f"Received: precision={precision!r}"
        )
    if aware and precision != "int8":
        raise ValueError(
            "A model from `quantize_aware` must be exported with "
            '`precision="int8"`. For another precision, export the model that '
            f"was given to `quantize_aware`. Received: precision={precision!r}"
        )
    if precision == "int8" and not aware and representative_data is None:
        raise ValueError(
            '`precision="int8"` requires `representative_data`: a few hundred '
            "inputs as in training, for the ranges of activations. "
            "Received: representative_data=None"
        )


def _check_io_dtype(io_dtype, precision):
    if io_dtype == "float32" or (io_dtype, precision) == ("int8", "int8"):
        return
    raise ValueError(
        '`io_dtype` must be "float32", or "int8" with `precision="int8"`. '
        f"Received: io_dtype={io_dtype!r}, precision={precision!r}"
    )


def examples_of(model: keras.Model, data: Any) -> list[np.ndarray]:
    """Return an array for each input, all with the same number of examples.

    Args:
        model: a model with a layer graph.
        data: `representative_data` of `export_litert`.
    """
    if data is None:
        return random_inputs(model)
    is_one_batch = hasattr(data, "shape") or isinstance(data, dict)
    batches = [data] if is_one_batch else data
    collected, count = [], 0
    for batch in batches:
        collected.append(_checked(model, batch))
        count += len(collected[-1][0])
        if count >= _NUM_EXAMPLES:
            break
    if not count:
        raise ValueError(
            "`representative_data` must have at least one example. Received: "
            f"representative_data={data!r}"
        )
    return [
        np.concatenate(arrays)[:_NUM_EXAMPLES] for arrays in zip(*collected)
    ]


def random_inputs(model: keras.Model) -> list[np.ndarray]:
    """Return a few random inputs of a model."""
    generator = np.random.default_rng(0)

    def draw(tensor):
        shape = (_NUM_RANDOM, *tensor.shape[1:])
        if "float" in tensor.dtype:
            return generator.normal(size=shape).astype(tensor.dtype)
        # Inputs may be indices, of which only the smallest are surely valid.
        return generator.integers(0, 2, size=shape).astype(tensor.dtype)

    return [draw(tensor) for tensor in model.inputs]


def _checked(model, batch):
    """Return the inputs in a batch of representative data, as arrays."""
    inputs = batch[0] if isinstance(batch, tuple) else batch
    # A Sequential model has `inputs`, but no `input` before its first call.
    structure = getattr(model, "input", None)
    if isinstance(inputs, dict) and not isinstance(structure, dict):
        inputs = [inputs.get(tensor.name) for tensor in model.inputs]
    arrays = [np.asarray(value) for value in tree.flatten(inputs)]
    expected = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if [array.shape[1:] for array in arrays] != expected:
        raise ValueError(
            "`representative_data` must have inputs of the model, in batches. "
            f"Expected: {[(None, *shape) for shape in expected]}. "
            f"Received: {[array.shape for array in arrays]}"
        )
    return [
        array.astype(tensor.dtype)
        for array, tensor in zip(arrays, model.inputs)
    ]


def _in_float32(model):
    """Return the model, or a copy of it that the converter can read."""
    is_float32 = all(
        layer.compute_dtype == "float32" or "float" not in layer.compute_dtype
        for layer in layers_of(model)
    ) and all(tensor.shape[0] is None for tensor in model.inputs)
    if is_float32:
        return model
    copier = Copier(
        lambda layer: None,
        shape_of=lambda tensor: (None, *tensor.shape[1:]),
        dtype="float32",
    )
    return copier.copy(model)


def _calibrated(model, examples):
    """Return a copy with ranges, for a model with a loop."""
    try:
        return calibrated(model, examples)
    except ValueError as error:
        raise RuntimeError(
            "LiteRT cannot find the int8 ranges of a model with a loop, such "
            "as a recurrent layer, and this model does not allow to find them "
            "between the layers. Use another precision, or `unroll=True` in "
            f"recurrent layers. The reason was: {error}"
        ) from error


def _check_outputs(outputs, model, precision, examples):
    """Raise a RuntimeError if the outputs of file and model differ."""
    inputs = tree.pack_sequence_as(model.input, examples)
    expected = tree.flatten(model(inputs, training=False))
    for index, (output, tensor) in enumerate(zip(outputs, expected)):
        _check_output(
            f"output_{index}",
            output.astype("float64"),
            np.asarray(keras.ops.convert_to_numpy(tensor), "float64"),
            precision,
        )


def _check_output(name, output, expected, precision):
    difference = np.abs(output - expected)
    if precision in _TOLERANCES:
        difference = np.max(difference)
        limit = _TOLERANCES[precision] * np.max(np.abs(expected)) + 1e-6
    else:
        difference = np.mean(difference)
        # For a softmax, 1 / 256 is one step of int8.
        limit = np.ptp(expected) / 2 + 1 / 128
    if not difference <= limit:  # true for NaN
        raise RuntimeError(
            f"The file was not written: in {precision}, its {name} differs "
            f"from that of the model by {difference:.3g}. The tolerance is "
            f"{limit:.3g}. If a value is not finite, pass inputs as in "
            "training as `representative_data`. If the precision is too low, "
            "train with `quantize_aware`."
        )
