"""LiteRT files have the outputs of the model."""

import sys

import keras
import numpy as np
import pytest
from common import BACKEND
from common import Subclassed
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from keras import layers
from litert_files import interpreter_of
from litert_files import operations_in
from litert_files import outputs_of_file
from litert_files import tensorflow_only

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill.compression import export_litert
from keras_distill.compression import pack
from keras_distill.compression import quantize_aware
from keras_distill.compression import unpack
from keras_distill.compression.litert import _export_litert

pytestmark = pytest.mark.any_backend


def student(name="student"):
    """A network with layers that are active only in training."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ],
        name=name,
    )


def test_two_inputs_and_two_outputs(tmp_path):
    image = keras.Input((8, 8, 1), name="b")
    code = keras.Input((2,), dtype="int32", name="a")
    x = layers.Flatten()(layers.Embedding(3, 4)(code))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    y = layers.GlobalAveragePooling2D()(layers.RandomRotation(0.5)(y))
    z = layers.Dense(3)(layers.Concatenate()([x, y]))
    model = keras.Model({"b": image, "a": code}, {"z": z, "y": y})
    path = tmp_path / "model.tflite"
    export_litert(model, path)
    codes = np.random.default_rng(0).integers(0, 2, (16, 2)).astype("int32")
    x, _ = images()
    expected = to_numpy(model({"a": codes, "b": x}, training=False))
    for found, name in zip(outputs_of_file(path, codes, x), "yz", strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-3)
    assert not {"REVERSE_V2", "RANDOM_UNIFORM"} & set(operations_in(path))
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_a_student_that_learned_in_int8(tmp_path):
    teacher = student("teacher")
    distiller = Distiller(student=quantize_aware(teacher), teacher=teacher)
    distiller.compile("adam")
    x, _ = images(count=64)
    distiller.fit(x, batch_size=16, verbose=0)
    path = tmp_path / "student.tflite"
    export_litert(distiller, path, "int8")
    (found,) = outputs_of_file(path, x)
    expected = to_numpy(distiller.student(x, training=False))
    # Some sums lie between two values and are rounded differently.
    difference = np.abs(found - expected) / np.ptp(expected)
    assert difference.max() < 0.02 and difference.mean() < 0.002
    assert operations_in(path) == [
        "QUANTIZE",
        *["CONV_2D"] * 2,
        "MEAN",
        "FULLY_CONNECTED",
        "DEQUANTIZE",
    ]


@tensorflow_only
def test_a_distiller_that_augments(tmp_path):
    x, y = images()
    augment = ConsistentAugment([InceptionCrop(8, 8), MixUp()])
    distiller = Distiller(
        student=student(), teacher=student("teacher"), augment=augment
    )
    distiller.compile("adam", ClassicKD())
    distiller.fit(x, y, verbose=0)
    path = tmp_path / "model.tflite"
    export_litert(distiller, path)
    (found,) = outputs_of_file(path, x)
    expected = to_numpy(distiller.student(x, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@tensorflow_only
def test_a_model_that_learned_int8_by_itself(tmp_path):
    x, y = images(count=64)
    copy = quantize_aware(student())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    copy.compile(keras.optimizers.SGD(1e-4), loss)
    copy.fit(x, y, batch_size=8, epochs=2, verbose=0)
    path = tmp_path / "model.tflite"
    export_litert(copy, path, "int8", representative_data=x)
    (found,) = outputs_of_file(path, x)
    expected = to_numpy(copy(x, training=False))
    difference = np.abs(found - expected) / np.ptp(expected)
    assert difference.max() < 0.05 and difference.mean() < 0.006


@tensorflow_only
@pytest.mark.parametrize(
    "precision, share, tolerance",
    [
        ("float32", 1, 1e-5),
        ("float16", 0.6, 0.01),
        ("dynamic_int8", 0.5, 0.03),
        ("int8", 0.5, 0.05),
    ],
)
def test_precisions(precision, share, tolerance, tmp_path):
    model = student()
    x, _ = images(count=64)
    for _ in range(5):
        model(x, training=True)
    export_litert(model, tmp_path / "float32.tflite")
    path = tmp_path / "model.tflite"
    export_litert(model, path, precision, representative_data=x)
    (found,) = outputs_of_file(path, x)
    expected = to_numpy(model(x, training=False))
    assert found.dtype == "float32"
    assert np.abs(found - expected).max() <= tolerance * np.ptp(expected)
    size = (tmp_path / "float32.tflite").stat().st_size
    assert path.stat().st_size <= share * size


@tensorflow_only
@pytest.mark.parametrize("kind", ["dataset", "dict", "batches"])
def test_kinds_of_representative_data(kind, tmp_path):
    import tensorflow as tf

    x, y = vectors(count=70)
    model = mlp()
    data = {
        "dataset": lambda: tf.data.Dataset.from_tensor_slices((x, y)).batch(9),
        "dict": lambda: {model.inputs[0].name: x},
        "batches": lambda: (batch for batch in np.split(x, 7)),
    }[kind]()
    path = tmp_path / "model.tflite"
    export_litert(model, path, "int8", representative_data=data)
    (found,) = outputs_of_file(path, x)
    expected = to_numpy(model(x))
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


@tensorflow_only
def test_half_precision_and_a_batch_of_fixed_size(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, 6)), layers.Dense(5, "gelu")]
    )
    export_litert(model, tmp_path / "model.tflite")
    x, _ = vectors(count=4)
    (found,) = outputs_of_file(tmp_path / "model.tflite", x)
    np.testing.assert_allclose(found, to_numpy(model(x)), atol=0.05)


@tensorflow_only
def test_four_examples_at_once(tmp_path):
    """The interpreter can resize the inputs."""
    model = student()
    x, _ = images(count=4)
    export_litert(model, tmp_path / "model.tflite")
    interpreter = interpreter_of(tmp_path / "model.tflite")
    (inputs,) = interpreter.get_input_details()
    (outputs,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(inputs["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], x)
    interpreter.invoke()
    np.testing.assert_allclose(
        interpreter.get_tensor(outputs["index"]),
        to_numpy(model(x, training=False)),
        rtol=1e-4,
        atol=1e-3,
    )


@tensorflow_only
def test_a_saved_model_that_learned_in_int8(tmp_path):
    x, _ = images(count=32)
    copy = quantize_aware(student())
    copy(x, training=True)
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    for name, model in (("copy", copy), ("loaded", loaded)):
        export_litert(model, tmp_path / name, "int8")
    (first,), (second,) = (
        outputs_of_file(tmp_path / name, x) for name in ("copy", "loaded")
    )
    np.testing.assert_array_equal(first, second)


@tensorflow_only
def test_a_packed_model(tmp_path):
    x, _ = images(count=8)
    model = student()
    model(x, training=True)
    pack(model, tmp_path / "packed")
    export_litert(unpack(tmp_path / "packed"), tmp_path / "model.tflite")
    (found,) = outputs_of_file(tmp_path / "model.tflite", x)
    expected = to_numpy(model(x, training=False))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def returning(monkeypatch, outputs_of, content=b"new"):
    """Make the converter return a file with wrong outputs."""

    def convert(model, precision, examples, tried, io_dtype):
        return content, outputs_of(model, tried)

    monkeypatch.setattr(_export_litert, "convert", convert)
    monkeypatch.setattr(_export_litert, "notes_on", lambda *arguments: [])


@tensorflow_only
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_no_file_that_is_wrong(precision, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older")
    x, _ = vectors()
    wrong = 1e3 * np.ones((16, 5))
    returning(monkeypatch, lambda model, tried: [wrong])
    with pytest.raises(RuntimeError, match=r"not written.*output_0 differs"):
        export_litert(mlp(), path, precision, representative_data=x)
    wrong[0, 0] = np.nan
    with pytest.raises(RuntimeError, match=r"output_0 differs .* by nan"):
        export_litert(mlp(), path, precision, representative_data=x)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"older"]


def test_float16_is_held_to_more_than_8_bits(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    returning(
        monkeypatch, lambda model, tried: [1.1 * to_numpy(model(tried[0]))]
    )
    with pytest.raises(RuntimeError, match="in float16, its output_0 differs"):
        export_litert(mlp(), path, "float16")
    export_litert(mlp(), path, "dynamic_int8")
    assert path.read_bytes() == b"new"


@tensorflow_only
@pytest.mark.parametrize("count", [1, 16, 17, 70])
def test_files_are_tried_with_examples_from_everywhere(
    count, tmp_path, monkeypatch
):
    seen = []

    def outputs_of(model, tried):
        seen.append(tried[0])
        return [to_numpy(model(tried[0]))]

    returning(monkeypatch, outputs_of)
    x, _ = vectors(count)
    path = tmp_path / "model.tflite"
    export_litert(mlp(), path, "int8", representative_data=x)
    step = {1: 1, 16: 1, 17: 2, 70: 5}[count]
    np.testing.assert_array_equal(seen[0], x[::step])


@keras.saving.register_keras_serializable(package="only in this process")
class Own(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="it converts in the same process"
)
def test_layers_that_another_process_does_not_find(tmp_path, monkeypatch):
    monkeypatch.setattr(Own, "__module__", "__main__")
    model = keras.Sequential([keras.Input((6,)), Own()])
    with pytest.raises(
        RuntimeError, match=r"'Own' is defined in the running script.*regis"
    ):
        export_litert(model, tmp_path / "model.tflite")


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-distill\[lit"):
        export_litert(mlp(), tmp_path / "model.tflite")


def any_size():
    inputs = keras.Input((None, 3), name="text")
    return keras.Model(inputs, layers.GlobalMaxPooling1D()(inputs))


def looks_up():
    words = keras.Input((3,), dtype="string")
    lookup = layers.StringLookup(vocabulary=["a", "b"], name="words")
    return keras.Model(words, layers.Embedding(3, 2)(lookup(words)))


def stateful():
    inputs = keras.Input(batch_shape=(1, 4, 3))
    memory = layers.GRU(2, stateful=True, name="memory")
    return keras.Model(inputs, layers.Bidirectional(memory)(inputs))


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (lambda: keras.Sequential([layers.Dense(4)]), {}, "with an input"),
        (Subclassed, {}, "functional model.*Subclassed"),
        (any_size, {}, r"known shape.*'text' of shape \(None, None, 3\)"),
        (mlp, {"precision": "int4"}, "one of .*precision='int4'"),
        (mlp, {"precision": "int8"}, "requires `representative_data`.*=None"),
        (
            mlp,
            {"representative_data": np.ones((4, 7))},
            r"Expected: \[\(None, 6\)\]. Received: \[\(4, 7\)\]",
        ),
        (
            mlp,
            {"representative_data": []},
            "must have at least one example.*=\\[\\]",
        ),
        (lambda: quantize_aware(mlp()), {}, "must be exported with"),
        (
            lambda: quantize_aware(mlp()),
            {"precision": "int8"},
            "has no range, because",
        ),
        (mlp, {"path": "no/such/folder.tflite"}, "`path` must be"),
        (looks_up, {}, "cannot store the table of a lookup.*'words', <StringL"),
        (
            stateful,
            {},
            "cannot keep state.*'bidirectional' with `stateful=True`",
        ),
    ],
)
def test_refused(make, arguments, message, tmp_path):
    arguments = {"path": tmp_path / "model.tflite"} | arguments
    with pytest.raises(ValueError, match=message):
        export_litert(make(), **arguments)
    assert not list(tmp_path.iterdir())
