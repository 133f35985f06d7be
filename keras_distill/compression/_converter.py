"""From Keras to LiteRT: TensorFlow's converter, in a process of its own.

    python -m keras_distill.compression._converter FOLDER

Only TensorFlow can trace a model for its converter. On other backends the model
goes into a file, and that command builds it anew under TensorFlow.

Left out: the conversion of a JAX model as it is, which gives a graph that is
many times slower; and ai-edge-quantizer, which quantizes float32 files. Version
0.10.0 returns int8 from an output that something else in the network reads too;
on a ResNet-20 its files had the size, speed and accuracy of these.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np
from keras import tree

SIGNATURE = "serving_default"
_ANEW = (
    "Another Python process builds the model anew under TensorFlow. Put layers "
    "and functions of your own into a module that can be imported there, and "
    "register them with `keras.saving.register_keras_serializable`."
)


def convert(model, precision, examples=None):
    """Return the bytes of a LiteRT file, on whatever backend.

    Args:
        model: a functional or Sequential model that computes in float32.
        precision: as in `export_litert`.
        examples: None, or an array for each input, from which an int8 file gets
            its ranges. Without, it has those of the FakeQuantization layers.
    """
    # Of tensors; a model that was loaded has others.
    names = [tensor.name for tensor in model.inputs]
    if keras.backend.backend() == "tensorflow":
        return _convert(model, names, precision, examples)
    objects = [[o.__module__, o.__qualname__] for o in _own_objects(model)]
    for module, name in objects:
        if module == "__main__":
            raise ValueError(
                f"{name!r} is defined in the script that is run, or in a "
                f"notebook. {_ANEW}"
            )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        task = {"names": names, "precision": precision, "objects": objects}
        (folder / "task.json").write_text(json.dumps(task))
        np.savez(folder / "examples.npz", *examples or ())
        model.save(folder / "model.keras")
        _run(folder)
        return (folder / "model.tflite").read_bytes()


def _own_objects(model):
    """Return the classes and functions in a model that are not Keras's."""
    config = model.to_json()
    registered = keras.saving.get_custom_objects().items()
    found = {type(layer) for layer in model._flatten_layers()}
    found |= {value for name, value in registered if f'"{name}"' in config}
    return [o for o in found if o.__module__.split(".")[0] != "keras"]


def _run(folder):
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # It has nothing to compute, and GPUs may be full.
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"{lines[-1]} {_ANEW}")


def _main(folder):
    task = json.loads((folder / "task.json").read_text())
    custom_objects = {
        name: _imported(module, name) for module, name in task["objects"]
    }
    model = keras.models.load_model(
        folder / "model.keras",
        {name: value for name, value in custom_objects.items() if value},
        compile=False,
        safe_mode=False,  # written by the caller a moment ago
    )
    with np.load(folder / "examples.npz") as arrays:
        examples = [arrays[name] for name in arrays] or None
    content = _convert(model, task["names"], task["precision"], examples)
    (folder / "model.tflite").write_bytes(content)


def _imported(module, name):
    """Return an object, or None where it can't be found in this process."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _convert(model, names, precision, examples):
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
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        tf.saved_model.save(module, folder, signatures={SIGNATURE: serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # It calibrates with an interpreter that warns of its age.
        warnings.simplefilter("ignore")
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8" and examples is not None:
            converter.representative_dataset = lambda: _one_by_one(
                names, examples
            )
        return converter.convert()


def _one_by_one(names, examples):
    for arrays in zip(*examples):
        yield {name: array[None] for name, array in zip(names, arrays)}


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]))
