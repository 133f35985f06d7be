"""Teachers that are no Keras models: recorded on values, or told what to do."""

import collections
import dataclasses
import http.server
import json
import threading
import urllib.request

import keras
import numpy as np
import pytest
import torch
from common import BACKEND
from common import CLASSES
from common import cnn
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import record_teacher

pytestmark = pytest.mark.any_backend

MATRIX = np.random.default_rng(3).normal(size=(6, CLASSES)).astype("float32")


def record(teacher, x, path, **options):
    """Return what a recording in the data's order holds, in its structure."""
    options = {
        "storage_dtype": "float32",
        "seed": None,
        "verbose": 0,
        **options,
    }
    record_teacher(teacher, x, path, **options)
    recording = RecordedTeacher(path)
    parts = [
        recording.in_structure(recording.outputs_in(recording.rows(0, index)))
        for index in range(recording.num_batches)
    ]
    return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)


def distiller_of(teacher, student=None, loss=None, **options):
    distiller = Distiller(student=student or mlp(), teacher=teacher)
    distiller.compile("sgd", loss or FunctionMatching(), **options)
    return distiller


def litert_file(folder):
    import tensorflow as tf

    function = tf.function(
        lambda x: tf.matmul(x, MATRIX),
        input_signature=[tf.TensorSpec((None, 6), tf.float32)],
    )
    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    (folder / "teacher.tflite").write_bytes(converter.convert())
    return str(folder / "teacher.tflite")


def litert(folder):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(litert_file(folder))
    place = interpreter.get_input_details()[0]["index"]
    index = interpreter.get_output_details()[0]["index"]

    def teacher(x):
        interpreter.resize_tensor_input(place, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, x)
        interpreter.invoke()
        return interpreter.get_tensor(index)

    return teacher


def saved_model(folder):
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(
        lambda x: {"output_0": tf.matmul(x, MATRIX)},
        input_signature=[tf.TensorSpec((None, 6), tf.float32)],
    )
    tf.saved_model.save(module, str(folder / "saved"))
    return tf.saved_model.load(str(folder / "saved")).serve


def jax_function(folder):
    import jax

    return jax.jit(lambda x: x @ MATRIX)


class Server:
    """A server that returns logits as JSON."""

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers["Content-Length"])
                x = np.array(json.loads(self.rfile.read(size)), "float32")
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps((x @ MATRIX).tolist()).encode())

            def log_message(self, *arguments):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def of_server(url):
    def teacher(x):
        data = json.dumps(x.tolist()).encode()
        with urllib.request.urlopen(url, data) as response:
            return np.array(json.load(response))

    return teacher


def for_arrays(function):
    """On PyTorch a function gets tensors, which few others take."""
    return lambda x: function(np.asarray(x))


ORIGINS = {
    "LiteRT": lambda folder: for_arrays(litert(folder)),
    "SavedModel": saved_model,
    "JAX": lambda folder: for_arrays(jax_function(folder)),
    "keras.ops": lambda folder: lambda x: keras.ops.matmul(x, MATRIX),
    "NumPy": lambda folder: lambda x: np.asarray(x) @ MATRIX,
    "layers": lambda folder: keras.Sequential(
        [
            keras.Input((6,)),
            layers.Lambda(lambda x: keras.ops.matmul(x, MATRIX)),
        ]
    ),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_origins_of_teachers(origin, tmp_path):
    x, _ = vectors(20)
    teacher = ORIGINS[origin](tmp_path)
    recorded = record(teacher, x, tmp_path / "recording", batch_size=8)
    (recorded,) = keras.tree.flatten(recorded)
    np.testing.assert_allclose(recorded, x @ MATRIX, rtol=1e-4, atol=1e-5)
    distiller_of(RecordedTeacher(tmp_path / "recording")).fit(x, verbose=0)


def test_a_server(tmp_path):
    x, _ = vectors(20)
    with Server() as url:
        recorded = record(of_server(url), x, tmp_path, batch_size=8)
    np.testing.assert_allclose(recorded, x @ MATRIX, rtol=1e-4, atol=1e-5)


def test_functions_get_values_outside_of_what_is_compiled(tmp_path):
    seen = []

    def teacher(x):
        seen.append(x)
        return np.asarray(x)[:, :CLASSES]

    x, _ = vectors(20)
    record(teacher, x.astype("float64"), tmp_path, batch_size=8)
    kind = torch.Tensor if BACKEND == "torch" else np.ndarray
    assert all(isinstance(each, kind) for each in seen)
    assert {str(each.dtype).removeprefix("torch.") for each in seen} == {
        "float32"
    }
    assert np.asarray(seen[-1]).shape == (4, 6)


def test_views_are_drawn_for_functions(tmp_path):
    x, y = images(20, size=12, dtype="uint8")

    def views():
        return ConsistentAugment(
            [InceptionCrop(8, 8), layers.RandomFlip(), MixUp()], seed=1
        )

    def teacher(view):
        return np.asarray(view).mean(axis=(1, 2)) * np.arange(CLASSES)

    record_teacher(
        teacher,
        x,
        tmp_path,
        augment=views(),
        teacher_preprocessing=lambda view: view / 255,
        epochs=2,
        batch_size=8,
        storage_dtype="float32",
        verbose=0,
    )
    recording = RecordedTeacher(tmp_path)
    for epoch, batch in ((0, 0), (1, 2)):
        rows = recording.rows(epoch, batch)
        view, _ = views().draw(x[rows["sample"]], recording.drawn_in(rows))
        np.testing.assert_allclose(
            recording.outputs_in(rows)["output_0"],
            teacher(to_numpy(view) / 255),
            rtol=1e-4,
        )
    distiller = Distiller(student=cnn(2), teacher=recording, augment=views())
    distiller.compile("sgd", ClassicKD())
    distiller.fit(x, y, verbose=0)


def test_text_is_recorded_from_a_function(tmp_path):
    x = np.array([["a good film"], ["bad"], ["a film"]])
    recorded = record(
        lambda x: np.array([[len(text[0]), 1.0] for text in x]), x, tmp_path
    )
    np.testing.assert_array_equal(recorded, [[11, 1], [3, 1], [6, 1]])


def test_a_keras_model_behind_a_function(tmp_path):
    """Its preprocessing may need values; the model runs compiled."""
    x, _ = vectors()
    teacher = mlp(16)
    recorded = record(
        teacher,
        x,
        tmp_path,
        teacher_preprocessing=lambda x: np.clip(np.asarray(x), -1, 1),
    )
    expected = teacher.predict(np.clip(x, -1, 1), verbose=0)
    np.testing.assert_allclose(recorded, expected, rtol=1e-5, atol=1e-6)


@dataclasses.dataclass
class Prediction:
    logits: object
    hidden: object = None


@dataclasses.dataclass
class Encoding:
    last_hidden_state: object


class ModelOutput(collections.OrderedDict):
    """A dict with attributes, as of a well-known library."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Named = collections.namedtuple("Named", "logits hidden")
OBJECTS = {
    "dataclass": Prediction,
    "dict with attributes": lambda logits: ModelOutput(
        loss=None, logits=logits, hidden=logits[:, :2]
    ),
    "named tuple": lambda logits: Named(logits, logits[:, :2]),
    "list of one": lambda logits: [logits],
    "dict of one": lambda logits: {"output_0": logits},
    "list of an object": lambda logits: [Prediction(logits)],
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_with_logits_and_structures_of_one(kind, tmp_path):
    x, _ = vectors()
    teacher = mlp(16)
    values = {}
    for name, given in {
        "plain": teacher,
        "object": lambda x: OBJECTS[kind](teacher(x)),
    }.items():
        keras.utils.set_random_seed(1)
        record(given, x, tmp_path / name)
        distiller = distiller_of(given)
        replay = distiller_of(RecordedTeacher(tmp_path / name))
        values[name] = [
            distiller.evaluate(x, verbose=0, return_dict=True)["loss"],
            replay.fit(x, verbose=0).history["loss"][0],
        ]
        distiller.fit(x, verbose=0)
    np.testing.assert_allclose(values["object"], values["plain"], rtol=1e-5)


STRUCTURES = {
    "tuple": lambda x: (x[:, :5], x[:, :2]),
    "dict": lambda x: {"a": x[:, :5], "b": x[:, :2]},
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_other_structures_are_refused_with_the_remedy(kind, tmp_path):
    x, _ = vectors()
    message = r"same structure. Received: teacher outputs=.*lambda x: model\(x"
    with pytest.raises(ValueError, match=message):
        distiller_of(STRUCTURES[kind]).fit(x, verbose=0)
    record(STRUCTURES[kind], x, tmp_path)
    with pytest.raises(ValueError, match=message):
        distiller_of(RecordedTeacher(tmp_path))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_serve_students_of_the_same(kind, tmp_path):
    x, _ = vectors()

    def student():
        inputs = keras.Input((6,))
        heads = [layers.Dense(5)(inputs), layers.Dense(2)(inputs)]
        if kind == "dict":
            heads = dict(zip("ab", heads))
        return keras.Model(inputs, heads)

    record(STRUCTURES[kind], x, tmp_path)
    for teacher in (STRUCTURES[kind], RecordedTeacher(tmp_path)):
        distiller_of(teacher, student()).fit(x, verbose=0)


BAD = {
    "dataclass": (
        lambda x: Encoding(x),
        TypeError,
        r"type Encoding with \['last_hidden_state'\].*lambda x: teacher\(x\)\.",
    ),
    "dict with attributes": (
        lambda x: ModelOutput(last_hidden_state=x),
        TypeError,
        r"type ModelOutput with \['last_hidden_state'\]",
    ),
    "None": (lambda x: None, TypeError, "NoneType, None"),
    "numbers": (lambda x: [[0.1, 0.9]], TypeError, r"np\.asarray\(...\)"),
    "rows": (
        lambda x: keras.ops.ones((3, CLASSES)),
        ValueError,
        r"one output per sample. Received: .*\(3, 5\) for 32 samples",
    ),
    "one row": (
        lambda x: keras.ops.ones((1, CLASSES)),
        ValueError,
        r"one output per sample",
    ),
    "no rows": (
        lambda x: keras.ops.mean(x),
        ValueError,
        r"one output per sample",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_output_is_refused(kind, tmp_path):
    x, _ = vectors()
    teacher, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        record(teacher, x, tmp_path)
    # TensorFlow compiles for batches of any size.
    eager = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
    with pytest.raises(Exception, match=message):
        distiller_of(teacher, **eager).fit(x, verbose=0)


def test_outputs_of_another_shape_in_a_later_batch_are_refused(tmp_path):
    """NumPy would spread a single value over a row."""

    def teacher(x):
        return np.asarray(x)[:, : 5 if len(x) == 8 else 1]

    with pytest.raises(ValueError, match=r"shape \(1,\) after \(5,\)"):
        record(teacher, vectors(20)[0], tmp_path, batch_size=8)


def test_ensembles_of_different_shapes_are_refused(tmp_path):
    members = [lambda x: x, lambda x: x[:, :1]]
    for predicts in ("classes", "labels", "values"):
        with pytest.raises(ValueError, match="must have one shape"):
            record(members, vectors()[0], tmp_path, predicts=predicts)


def needs_values(x):
    return np.asarray(x) @ MATRIX


@pytest.mark.every_backend
def test_a_live_function_that_needs_values():
    x, _ = vectors()
    distiller = distiller_of(needs_values)
    if BACKEND == "torch":
        distiller.fit(x, verbose=0)
    else:
        message = r"needs_values.*compiled training step.*`record_teacher`.*"
        message += r"run_eagerly=True"
        for step in (distiller.fit, distiller.evaluate):
            with pytest.raises(TypeError, match=message):
                step(x, verbose=0)
    student = mlp()
    distiller = distiller_of(needs_values, student, run_eagerly=True)
    loss = distiller.evaluate(x, verbose=0, return_dict=True)["loss"]
    expected = FunctionMatching()(x @ MATRIX, student.predict(x, verbose=0))
    np.testing.assert_allclose(loss, float(expected), rtol=1e-5)
    distiller.fit(x, verbose=0)


@pytest.mark.every_backend
def test_preprocessing_that_needs_values_says_so():
    x, _ = vectors()
    distiller = Distiller(
        student=mlp(),
        teacher=mlp(16),
        teacher_preprocessing=lambda x: np.clip(np.asarray(x), -1, 1),
    )
    distiller.compile("sgd", FunctionMatching())
    if BACKEND == "torch":
        distiller.fit(x, verbose=0)
    else:
        with pytest.raises(TypeError, match="record_teacher"):
            distiller.fit(x, verbose=0)


def test_an_error_of_the_function_itself_is_told():
    def teacher(x):
        return keras.ops.matmul(x, MATRIX[:4])

    with pytest.raises(Exception, match=r"(?s)(6|4).*(4|6)"):
        distiller_of(teacher).fit(vectors()[0], verbose=0)
