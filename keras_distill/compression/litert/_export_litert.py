"""export_litert: a file for phones and microcontrollers, run once to be sure.

LiteRT was called TensorFlow Lite. What its converter can't do is no part of
this: training on the device, inputs of unknown shape, batches.
"""

import warnings

import keras
import numpy as np
from keras import tree

from keras_distill import _files
from keras_distill._graphs._copier import Copier
from keras_distill._graphs._walk import check_graph
from keras_distill.compression._models import layers_of
from keras_distill.compression.litert._calibration import calibrated
from keras_distill.compression.litert._converter import convert
from keras_distill.compression.litert._converter_steps import LoopError
from keras_distill.compression.litert._file_contents import notes_on
from keras_distill.compression.litert._quantize_aware import (
    is_quantization_aware,
)
from keras_distill.compression.litert._quantize_aware import with_constants
from keras_distill.compression.weights._kernels import student_of

_LOOKUPS = (
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
PRECISIONS = ("float32", "float16", "dynamic_int8", "int8")
_NUM_EXAMPLES = 512
_NUM_RANDOM = 8
_NUM_COMPARED = 16
# Of the largest output, where nothing is rounded to 8 bits. On a CPU the
# difference is 1e-6; convolutions in TF32, the default of GPUs, are off by
# 1e-3. A kernel in float16 is off by 5e-4, and there are many in a row.
_TOLERANCES = {"float32": 5e-3, "float16": 5e-2}


def export_litert(model, path, precision="float32", representative_data=None):
    """Write a model as a LiteRT file (`.tflite`), from any backend.

    The file takes and returns one example, an input of shape `(1, ...)`, for
    small devices plan their memory ahead. Inputs and outputs are in float32, or
    integers where the model has integers. It computes what the model does with
    `training=False`: dropout and random augmentation are not in it. Of a
    `Distiller` it holds the student alone. Its signature `"serving_default"`
    has the names of the model's inputs, and returns `"output_0"`, `"output_1"`
    and so on in the order of `keras.tree.flatten(model.output)`.

    Precisions:

    - `"float32"`: as it is.
    - `"float16"`: kernels in 16 bits, half the size. Processors without
      float16 compute in float32.
    - `"dynamic_int8"`: large kernels in 8 bits, a quarter of the size;
      activations are rounded as they come.
    - `"int8"`: kernels and activations in 8 bits, for processors without
      floats. What LiteRT can't do in int8 stays in float32, and a warning
      names it and says why: recurrent layers and other loops, for example.
      Ranges come from `representative_data`, or from training, with the copy
      that `quantize_aware` returns.

    The file is run in the LiteRT interpreter before it gets its name. Converter
    and interpreter are native code that can end the process they run in. So
    they run in a second Python process, which takes a few seconds, unless the
    backend is TensorFlow and the model has nothing but the operations of common
    convolutional networks and transformers. On other backends that process
    builds the model again under TensorFlow.

    Args:
        model: a built functional or Sequential model that computes in any
            precision, or a `Distiller`. It stays as it is.
        path: path of the file. An older file is replaced when the new one is
            whole and was found to be right.
        precision: one of the above.
        representative_data: inputs as in training, needed for `"int8"` alone:
            an array, a dict of arrays by input, or a `tf.data.Dataset` or other
            iterable of batches of such. Of a batch that is a tuple, such as
            `(x, y)`, the first part counts. The first 512 examples are used. A
            few of them, or random numbers, are what the file is tried with.

    Raises:
        ImportError: if LiteRT is not installed.
        ValueError: if the model has no graph of layers, inputs of unknown
            shape, lookup layers or stateful layers, or if an argument does not
            fit.
        RuntimeError: if the model can't be converted, with the operation that
            LiteRT lacks; if the converter died; or if the file returns
            something else than the model: a difference above 0.5 % of the
            largest output in float32, or 5 % in float16, and in 8 bits numbers
            that are not finite, or off by half the spread of the outputs on
            average.

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
    notes = write_litert(model, path, precision, representative_data)
    for note in notes:
        warnings.warn(note, stacklevel=2)


def write_litert(model, path, precision, representative_data):
    """Do what `export_litert` does, and return what it warns of."""
    _check_installed()
    path = _files.writable(path)
    model = student_of(model)
    _check_model(model)
    if isinstance(model, keras.Sequential):  # for `model.input` to be known
        model = keras.Model(model.inputs[0], model.outputs[0])
    aware = is_quantization_aware(model)
    _check_precision(precision, aware, representative_data)
    examples = examples_of(model, representative_data)
    plain = _in_float32(with_constants(model) if aware else model)
    # From all over the data, which may be sorted by class.
    step = -(-len(examples[0]) // _NUM_COMPARED)
    tried = [array[::step] for array in examples]
    ranges = precision == "int8" and not aware
    try:
        content, outputs = convert(
            plain, precision, examples if ranges else None, tried
        )
    except LoopError:
        calibrated = _calibrated(plain, examples)
        aware = True
        content, outputs = convert(calibrated, precision, None, tried)
    _check_outputs(outputs, plain, precision, tried)
    _files.write(path, lambda out: out.write(content))
    return notes_on(content, plain, aware) if precision == "int8" else []


def _check_installed():
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`export_litert` runs the file before you do, and needs LiteRT for "
            "it: pip install 'keras-distill[litert]'"
        ) from error


def _check_model(model):
    check_graph("export_litert", model)
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "`export_litert` needs inputs of known shape, apart from the "
                "number of examples. Build the model with a `keras.Input` of "
                "the size that it will see on the device. "
                f"Received: the input {tensor.name!r} of shape {tensor.shape}"
            )
    for layer in model._flatten_layers():
        if isinstance(layer, _LOOKUPS):
            raise ValueError(
                "A LiteRT file has no place for the table of a lookup layer. "
                "Export the model that begins behind it, and look up on the "
                f"device. Received: {layer.name!r}, {layer!r}"
            )
        if getattr(layer, "stateful", False):
            raise ValueError(
                "A LiteRT file keeps no state from one call to the next. Build "
                "the model with `stateful=False`, or with the states as inputs "
                f"and outputs. Received: {layer.name!r} with `stateful=True`"
            )


def _check_precision(precision, aware, representative_data):
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {PRECISIONS}. "
            f"Received: precision={precision!r}"
        )
    if aware and precision != "int8":
        raise ValueError(
            "A model of `quantize_aware` has learned to compute in int8. "
            "Export it so, or give the model that it was made from. "
            f"Received: precision={precision!r}"
        )
    if precision == "int8" and not aware and representative_data is None:
        raise ValueError(
            '`precision="int8"` needs `representative_data`: a few hundred '
            "inputs as in training, for the ranges of activations. "
            "Received: representative_data=None"
        )


def examples_of(model, data):
    """Return an array for each input, of the same number of examples.

    Args:
        model: a model with a graph.
        data: as in `export_litert`.
    """
    if data is None:
        return random_inputs(model)
    whole = hasattr(data, "shape") or isinstance(data, dict)
    batches = [data] if whole else data
    collected, count = [], 0
    for batch in batches:
        collected.append(_checked(model, batch))
        count += len(collected[-1][0])
        if count >= _NUM_EXAMPLES:
            break
    if not count:
        raise ValueError(
            "`representative_data` has no examples. Received: "
            f"representative_data={data!r}"
        )
    return [
        np.concatenate(arrays)[:_NUM_EXAMPLES] for arrays in zip(*collected)
    ]


def random_inputs(model):
    """Return a few inputs of the right shapes, which mean nothing."""
    generator = np.random.default_rng(0)

    def draw(tensor):
        shape = (_NUM_RANDOM, *tensor.shape[1:])
        if "float" in tensor.dtype:
            return generator.normal(size=shape).astype(tensor.dtype)
        # Of indices, only the smallest are known to be valid.
        return generator.integers(0, 2, size=shape).astype(tensor.dtype)

    return [draw(tensor) for tensor in model.inputs]


def _checked(model, batch):
    """Return the inputs in a batch of representative data, as arrays."""
    inputs = batch[0] if isinstance(batch, tuple) else batch
    # A Sequential model has `inputs`, and no `input` before it was called.
    structure = getattr(model, "input", None)
    if isinstance(inputs, dict) and not isinstance(structure, dict):
        inputs = [inputs.get(tensor.name) for tensor in model.inputs]
    arrays = [np.asarray(value) for value in tree.flatten(inputs)]
    expected = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if [array.shape[1:] for array in arrays] != expected:
        raise ValueError(
            "`representative_data` must hold inputs of the model, in batches. "
            f"Expected: {[(None, *shape) for shape in expected]}. "
            f"Received: {[array.shape for array in arrays]}"
        )
    return [
        array.astype(tensor.dtype)
        for array, tensor in zip(arrays, model.inputs)
    ]


def _in_float32(model):
    """Return the model, or a copy of it that the converter can read."""
    as_it_is = all(
        layer.compute_dtype == "float32" or "float" not in layer.compute_dtype
        for layer in layers_of(model)
    ) and all(tensor.shape[0] is None for tensor in model.inputs)
    if as_it_is:
        return model
    copier = Copier(
        lambda layer: None,
        shape_of=lambda tensor: (None, *tensor.shape[1:]),
        dtype="float32",
    )
    return copier.copy(model)


def _calibrated(model, examples):
    """Return a copy that has its ranges in it, of a model with a loop."""
    try:
        return calibrated(model, examples)
    except ValueError as error:
        raise RuntimeError(
            "LiteRT finds no ranges for int8 in a model with a loop, such as a "
            "recurrent layer; they are taken between the layers instead, which "
            "this model does not allow. Export it in another precision, or "
            f"give recurrent layers `unroll=True`. The reason was: {error}"
        ) from error


def _check_outputs(outputs, model, precision, examples):
    """Raise a RuntimeError if a file does not return what the model does."""
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
        # 1 / 256 is one step of a softmax in int8.
        limit = np.ptp(expected) / 2 + 1 / 128
    if not difference <= limit:  # nor is NaN
        raise RuntimeError(
            f"The file was not written: in {precision} its {name} differs from "
            f"that of the model by {difference:.3g}, where {limit:.3g} would "
            "be right. If a number is not finite, try inputs as in training "
            "by `representative_data`; if the precision is too low, train "
            "with `quantize_aware`."
        )
