"""From Keras to LiteRT: where TensorFlow's converter runs.

It is native code that can take its process along. In that of the caller it runs
for graphs of ordinary operations only, on TensorFlow. All else gets a process
of its own (`_converter_process.py`): from TensorFlow it takes a SavedModel, and
from other backends the model, which it builds again, since only TensorFlow can
trace a model for its converter. The file is run in the same place, because the
interpreter is native code too.

Left out: a process for every model, which would take five seconds instead of
one for an ordinary network; the conversion of a JAX model as it is, which gives
a graph that is many times slower; and ai-edge-quantizer, which quantizes
float32 files. Version 0.10.0 returns int8 from an output that something else in
the network reads too; on a ResNet-20 its files had the size, speed and accuracy
of these.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import keras
import numpy as np

from keras_distill.compression._models import layers_of
from keras_distill.compression.litert import _converter_steps as steps
from keras_distill.compression.litert._converter_errors import explain

_PROCESS = "keras_distill.compression.litert._converter_process"
_AGAIN = (
    "Another Python process builds the model again under TensorFlow. Put "
    "layers and functions of your own into a module that can be imported "
    "there, and register them with `keras.saving.register_keras_serializable`."
)
# TensorFlow's operations in convolutional networks and transformers, which
# become a few operations of LiteRT each.
_ORDINARY = frozenset(
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


def convert(model, precision, examples, tried):
    """Return the bytes of a LiteRT file and what it returns.

    Args:
        model: a functional or Sequential model that computes in float32.
        precision: as in `export_litert`.
        examples: as in `_converter_steps.convert`.
        tried: an array of examples for each input, to run the file on.

    Returns:
        `(content, outputs)`: bytes, and an array for each output.

    Raises:
        LoopError: as `_converter_steps.convert` does.
        RuntimeError: if the converter does not take the model.
    """
    # Of tensors; a model that was loaded has others.
    names = [tensor.name for tensor in model.inputs]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        task = {"names": names, "precision": precision, "objects": []}
        if keras.backend.backend() == "tensorflow":
            saved = folder / "saved_model"
            operations = _explained(model, steps.trace, model, names, saved)
            steps.check_loops(operations, examples)
            if operations <= _ORDINARY:
                content = _explained(
                    model, steps.convert, saved, names, precision, examples
                )
                return content, steps.run(content, names, tried)
        else:
            task["objects"] = _own_objects(model)
            model.save(folder / "model.keras")
        (folder / "task.json").write_text(json.dumps(task))
        np.savez(folder / "examples.npz", *examples or ())
        np.savez(folder / "tried.npz", *tried)
        _run(folder, model)
        with np.load(folder / "outputs.npz") as outputs:
            outputs = [outputs[name] for name in outputs]
        return (folder / "model.tflite").read_bytes(), outputs


def _explained(model, step, *arguments):
    try:
        return step(*arguments)
    except Exception as error:
        raise RuntimeError(explain(str(error), model)) from error


def _own_objects(model):
    """Return `[[module, name]]` of what is in a model and not of Keras."""
    config = model.to_json()
    registered = keras.saving.get_custom_objects().items()
    found = {type(layer) for layer in model._flatten_layers()}
    found |= {value for name, value in registered if f'"{name}"' in config}
    objects = [
        [found.__module__, found.__qualname__]
        for found in found
        if found.__module__.split(".")[0] != "keras"
    ]
    for module, name in objects:
        if module == "__main__":
            raise RuntimeError(
                f"{name!r} is defined in the script that is run, or in a "
                f"notebook. {_AGAIN}"
            )
    return objects


def _run(folder, model):
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # It has nothing to compute, and GPUs may be full.
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    done = subprocess.run(
        [sys.executable, "-m", _PROCESS, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return
    if not (folder / "error.json").exists():
        raise RuntimeError(_end_of(done, model))
    error = json.loads((folder / "error.json").read_text())
    if error["kind"] == "LoopError":
        raise steps.LoopError
    if error["kind"] == "NotFoundError":
        raise RuntimeError(f"{error['message']} {_AGAIN}")
    raise RuntimeError(explain(error["message"], model))


def _end_of(done, model):
    """Say how a process ended that left no message."""
    if done.returncode == 1:  # by an exception, before it came to the model
        lines = done.stderr.strip().splitlines() or ["no message"]
        return f"The process of LiteRT's converter ended with: {lines[-1]}"
    code = done.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    kinds = sorted({type(layer).__name__ for layer in layers_of(model)})
    return (
        f"The process of LiteRT's converter died ({how}). Try another "
        "precision, or export parts of the model to find the layer that it "
        f"dies of. Received: a model with {kinds}"
    )
