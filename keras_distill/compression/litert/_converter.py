"""Converting a Keras model to LiteRT, in this process or in another one.

TensorFlow's converter is native code, and an error in it may end its process.
It runs in the caller's process only on TensorFlow and only for graphs of
common operations. All other models are converted in a second process
(`_converter_process.py`). On TensorFlow, that process gets a SavedModel. On
other backends it gets the Keras model and builds it again, because only
TensorFlow can trace a model for its converter. The file is tested in the same
process as it is converted, because the interpreter is native code too.

Three other designs were rejected:

- always a second process: five seconds instead of one for a common network;
- converting a JAX model directly: the graph is many times slower;
- ai-edge-quantizer, which quantizes float32 files: version 0.10.0 returns int8
  from an output that another layer also reads. On a ResNet-20, its files had
  the same size, speed and accuracy.
"""

import json
import pathlib
import signal
import tempfile
from typing import Any

import keras
import numpy as np

from keras_distill.compression._models import layers_of
from keras_distill.compression.litert import _converter_steps as steps
from keras_distill.compression.litert._converter_errors import explain
from keras_distill.compression.litert._interpreter import run_file
from keras_distill.compression.litert._kept_process import KeptProcess

_PROCESS = KeptProcess("keras_distill.compression.litert._converter_process")
_SECOND_PROCESS = (
    "A second Python process builds the model again on TensorFlow. Define "
    "custom layers and functions in a module that can be imported there, and "
    "register them with `keras.saving.register_keras_serializable`."
)
# The second process is kept if a model has layers of these only. Modules of
# users may change before the next model.
_LIBRARIES = frozenset({"keras_distill", "keras_hub", "keras_cv"})
# TensorFlow's operations in convolutional networks and transformers. The
# converter is safe for these.
_COMMON = frozenset(
    """
    AddV2 AvgPool BatchMatMulV2 BiasAdd Cast ConcatV2 Const Conv2D
    Conv2DBackpropInput DepthwiseConv2dNative Einsum Elu Erfc ExpandDims
    FakeQuantWithMinMaxVars Identity IdentityN LeakyRelu MatMul Max MaxPool
    Maximum Mean Minimum Mul Neg NoOp Pack Pad PartitionedCall Placeholder
    ReadVariableOp RealDiv Relu Relu6 Reshape Rsqrt Selu Shape Sigmoid Softmax
    Softplus Split Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall
    StopGradient StridedSlice Sub Sum Tanh Tile Transpose Unpack
    """.split()
)


def convert(
    model: keras.Model,
    precision: str,
    examples: list[np.ndarray] | None,
    test_inputs: list[np.ndarray],
    io_dtype: str,
) -> tuple[bytes, list[np.ndarray]]:
    """Convert a model to a LiteRT file, and run the file.

    Args:
        model: a functional or Sequential model that computes in float32.
        precision: as in `export_litert`.
        examples: as in `_converter_steps.convert`.
        test_inputs: an array for each input, to run the file on.
        io_dtype: as in `export_litert`.

    Returns:
        `(content, outputs)`: the bytes of the file, and an array for each
        output.

    Raises:
        LoopError: as `_converter_steps.check_loops`.
        RuntimeError: if the model cannot be converted.
    """
    # The names of the tensors here, because they change in a loaded model.
    names = [tensor.name for tensor in model.inputs]
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        task: dict[str, Any] = {
            "names": names,
            "precision": precision,
            "io_dtype": io_dtype,
            "objects": [],
        }
        if keras.backend.backend() == "tensorflow":
            saved = folder / "saved_model"
            operations = _explained(model, steps.trace, model, names, saved)
            steps.check_loops(operations, examples)
            if operations <= _COMMON:
                content = _explained(
                    model,
                    steps.convert,
                    saved,
                    names,
                    precision,
                    examples,
                    io_dtype,
                )
                return content, run_file(content, names, test_inputs)
        else:
            task["objects"] = _custom_objects(model)
            model.save(folder / "model.keras")
        (folder / "task.json").write_text(json.dumps(task))
        np.savez(folder / "examples.npz", *examples or ())
        np.savez(folder / "test_inputs.npz", *test_inputs)
        used = {module.split(".")[0] for module, _ in task["objects"]}
        _run_process(folder, model, keep=used <= _LIBRARIES)
        with np.load(folder / "outputs.npz") as arrays:
            outputs = [arrays[name] for name in arrays]
        return (folder / "model.tflite").read_bytes(), outputs


def _explained(model, step, *arguments):
    """Return the result of a step. A RuntimeError explains its errors."""
    try:
        return step(*arguments)
    except Exception as error:
        raise RuntimeError(explain(str(error), model)) from error


def _custom_objects(model):
    """Return `[[module, name]]` of custom classes and functions in a model."""
    config = model.to_json()
    registered = keras.saving.get_custom_objects().items()
    found = {type(layer) for layer in model._flatten_layers()}
    found |= {value for name, value in registered if f'"{name}"' in config}
    objects = [
        [value.__module__, value.__qualname__]
        for value in found
        if value.__module__.split(".")[0] != "keras"
    ]
    for module, name in objects:
        if module == "__main__":
            raise RuntimeError(
                f"{name!r} is defined in the running script or in a notebook. "
                f"{_SECOND_PROCESS}"
            )
    return objects


def _run_process(folder, model, keep):
    """Run the second process, which writes its results to the folder."""
    return_code, errors = _PROCESS.run(folder, keep)
    if return_code:
        raise RuntimeError(_exit_message(return_code, errors, model))
    if not (folder / "error.json").exists():
        return
    error = json.loads((folder / "error.json").read_text())
    if error["kind"] == "LoopError":
        raise steps.LoopError
    if error["kind"] == "NotFoundError":
        raise RuntimeError(f"{error['message']} {_SECOND_PROCESS}")
    raise RuntimeError(explain(error["message"], model))


def _exit_message(code, errors, model):
    """Return an error message for a process that left none."""
    if code == 1:  # an exception before it loaded the model
        lines = errors.strip().splitlines() or ["no message"]
        return f"The process of LiteRT's converter ended with: {lines[-1]}"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    kinds = sorted({type(layer).__name__ for layer in layers_of(model)})
    return (
        f"The process of LiteRT's converter crashed ({how}). Try another "
        "precision, or export parts of the model to find the layer that causes "
        f"it. Received: a model with {kinds}"
    )
