"""A recording of hidden states gives the outputs of the teacher itself."""

import json
import pathlib

import keras
import numpy as np
import pytest
from common import to_numpy
from common import weights_of
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import TeacherAgreement
from keras_distill import record_teacher

pytestmark = pytest.mark.any_backend

WORDS, TIME = 300, 5
# Of small weights, all words would be equally probable.
LARGE = keras.initializers.RandomNormal(stddev=1.0, seed=0)


def dense(activation=None, after=(), width=6, **options):
    """A language model that ends in a `Dense`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Embedding(WORDS, width, LARGE, mask_zero=not after)(inputs)
    hidden = layers.Dense(width, "tanh")(hidden)
    last = layers.Dense(
        WORDS,
        activation,
        kernel_initializer=LARGE,
        bias_initializer="normal",
        **options,
    )
    outputs = last(hidden)
    for layer in after:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def reversible(**options):
    """A language model that ends in its embedding."""
    keras.utils.set_random_seed(0)
    embedding = layers.ReversibleEmbedding(
        WORDS, 6, embeddings_initializer=LARGE, **options
    )
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Dense(6, "tanh")(embedding(inputs))
    return keras.Model(inputs, embedding(hidden, reverse=True))


def with_lora():
    model = dense()
    model.layers[-1].enable_lora(2)
    b = model.layers[-1].lora_kernel_b
    b.assign(np.random.default_rng(0).normal(size=b.shape))
    return model


MODELS = {
    "dense": dense,
    "no bias": lambda: dense(use_bias=False),
    "softmax": lambda: dense("softmax"),
    "softmax after it": lambda: dense(after=[layers.Softmax()]),
    "lora": with_lora,
    "tied": reversible,
    "untied": lambda: reversible(tie_weights=False),
    "soft cap": lambda: reversible(logit_soft_cap=0.5),
    "bfloat16": lambda: dense(dtype="bfloat16"),
    "mixed": lambda: dense(dtype="mixed_bfloat16"),
    "reverse in bfloat16": lambda: reversible(reverse_dtype="bfloat16"),
}


def texts(count=6):
    random = np.random.default_rng(0)
    return random.integers(1, WORDS, (count, TIME)).astype("int32")


def record(teacher, path, x=None, **options):
    x = texts() if x is None else x
    options = {"hidden_states": True, "batch_size": 3, "verbose": 0, **options}
    return record_teacher(teacher, x, path, **options)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_teachers(tmp_path, name):
    teacher = MODELS[name]()
    from_logits = not name.startswith("softmax")
    recording = record(teacher, tmp_path, from_logits=from_logits)
    rows = recording.rows(0, 0)
    outputs = recording.outputs_in(rows)["output_0"]
    expected = teacher.predict(texts()[rows["sample"]], verbose=0)
    exact = "bfloat16" not in str(expected.dtype)
    expected = np.asarray(expected, "float32")
    np.testing.assert_allclose(
        outputs, expected, rtol=1e-5 if exact else 0.01, atol=1e-6
    )
    # The width of a row does not depend on the number of words.
    assert rows.dtype.itemsize == 4 + TIME * 6 * 4


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("name", ["dense", "tied", "soft cap", "softmax"])
def test_a_student_learns_as_from_the_teacher_itself(tmp_path, name, chunk):
    from_logits = name != "softmax"
    x = texts()
    results = []
    for is_recorded in (False, True):
        teacher = MODELS[name]()
        if is_recorded:
            teacher = record(
                teacher, tmp_path, seed=None, from_logits=from_logits
            )
        keras.utils.set_random_seed(7)
        student = dense(None if from_logits else "softmax", width=2)
        before = weights_of(student)
        distiller = Distiller(
            student=student, teacher=teacher, tokens_per_chunk=chunk
        )
        distiller.compile(
            keras.optimizers.SGD(0.5),
            FunctionMatching(2.0, from_logits=from_logits),
            metrics=None if chunk else [TeacherAgreement()],
        )
        options = {} if is_recorded else {"batch_size": 3, "shuffle": False}
        fitted = distiller.fit(x, epochs=3, verbose=0, **options)
        results.append((fitted.history, weights_of(student)))
    for one, two in zip(*map(keras.tree.flatten, results)):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    changes = [abs(a - b).max() for a, b in zip(results[0][1], before)]
    assert min(changes) > 1e-3
    assert results[0][0]["loss"][0] > 0.1


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_teacher_itself_runs_in_validation(tmp_path, chunk):
    x, teacher, student = texts(), dense(), dense(width=2)
    record(teacher, tmp_path)
    live, replayed = (
        Distiller(student=student, teacher=given, tokens_per_chunk=chunk)
        for given in (teacher, RecordedTeacher(tmp_path, live=teacher))
    )
    live.compile("sgd", FunctionMatching())
    replayed.compile("sgd", FunctionMatching())
    logs = replayed.fit(x, validation_data=(x,), verbose=0).history
    scores = live.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["val_loss"], scores["loss"], rtol=1e-5)


def test_views_of_images(tmp_path):
    keras.utils.set_random_seed(0)
    teacher, student = (
        keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(WORDS)]
        )
        for _ in range(2)
    )
    x = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype("float32")
    views = ConsistentAugment([MixUp()])
    recording = record(teacher, tmp_path, x, augment=views, epochs=2)
    rows = recording.rows(1, 0)
    distiller = Distiller(student=student, teacher=recording, augment=views)
    distiller.compile("sgd", FunctionMatching(), metrics=[TeacherAgreement()])
    distiller.fit(x, epochs=2, verbose=0)
    images = keras.ops.convert_to_tensor(x[rows["sample"]])
    view, _ = views.draw(images, recording.drawn_in(rows))
    np.testing.assert_allclose(
        recording.outputs_in(rows)["output_0"],
        to_numpy(teacher(view)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_parts_have_one_head(tmp_path):
    teacher = dense()
    whole = record(teacher, tmp_path / "whole")
    for number in range(2):
        record(teacher, tmp_path / "parts", part=(number, 2))
    parts = RecordedTeacher(tmp_path / "parts")
    for batch in range(2):
        one, two = (r.outputs_in(r.rows(0, batch)) for r in (whole, parts))
        np.testing.assert_array_equal(one["output_0"], two["output_0"])
    heads = [file.parent.name for file in tmp_path.rglob("head.npy")]
    assert sorted(heads) == ["parts", "whole"]


def test_the_head_of_another_teacher_is_replaced(tmp_path):
    """A run that was killed before its manifest may have left one."""
    record(reversible(), tmp_path)
    (tmp_path / "manifest.json").unlink()
    teacher = dense()
    recording = record(teacher, tmp_path, seed=None)
    np.testing.assert_allclose(
        recording.outputs_in(recording.rows(0, 0))["output_0"],
        teacher.predict(texts()[:3], verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_parts_do_not_write_one_file(tmp_path):
    record(dense(), tmp_path, part=(1, 2))
    assert not (tmp_path / "head.npy").exists()
    record(dense(), tmp_path, part=(0, 2))
    assert (tmp_path / "head.npy").exists()


def test_in_another_storage(tmp_path):
    url = "memory://hidden-states"
    recording = record(dense(), url)
    local = record(dense(), tmp_path)
    one, two = (r.outputs_in(r.rows(0, 0)) for r in (recording, local))
    np.testing.assert_array_equal(one["output_0"], two["output_0"])


def quantized():
    model = dense()
    model.layers[-1].quantize("int8")
    return model


class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


@pytest.mark.parametrize(
    "teacher",
    [
        quantized,
        lambda: dense(after=[Doubled(WORDS)]),
        lambda: dense("relu"),
        lambda: dense(after=[layers.Dropout(0.5)]),
        lambda: [dense(), dense()],
        lambda: lambda x: x,
    ],
    ids=["quantized", "subclass", "relu", "dropout", "several", "a function"],
)
def test_teachers_without_a_head_are_refused(tmp_path, teacher):
    with pytest.raises(ValueError, match="`hidden_states` requires one"):
        record(teacher(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, text",
    [
        ({"top_k": 3}, "Leave one out"),
        ({"teacher_dtype": "bfloat16"}, "no `teacher_dtype`"),
        ({"from_logits": False}, "must be probabilities"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        record(dense(), tmp_path, **options)


def test_another_head_is_another_recording(tmp_path):
    record(dense(), tmp_path)
    record(dense(), tmp_path, epochs=2)  # continued
    with pytest.raises(ValueError, match="holds another recording"):
        record(dense(), tmp_path, hidden_states=False, storage_dtype="float32")


def damage(data):
    return data[:-1], data[:-9] + b"x" + data[-8:], b"", data + b"more"


@pytest.mark.parametrize("number", range(5))
def test_a_damaged_head_is_refused(tmp_path, number):
    record(dense(), tmp_path)
    file = tmp_path / "head.npy"
    data = file.read_bytes()
    if number == 4:
        file.unlink()
    else:
        file.write_bytes(damage(data)[number])
    with pytest.raises(ValueError, match=r"head\.npy of the recording"):
        RecordedTeacher(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"width": 7}, {"dtype": "object"}, {"classes": -1}, {"soft_cap": "1"}],
    ids=str,
)
def test_a_false_description_of_the_head_is_refused(tmp_path, changes):
    record(dense(), tmp_path)
    file = pathlib.Path(tmp_path, "manifest.json")
    manifest = json.loads(file.read_text())
    manifest["head"].update(changes)
    del manifest["checksum"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not the manifest"):
        RecordedTeacher(tmp_path)


def test_recordings_of_before_have_no_head(tmp_path):
    recording = record(dense(), tmp_path, hidden_states=False)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["head"], manifest["checksum"]
    file.write_text(json.dumps(manifest))
    old = RecordedTeacher(tmp_path)
    one, two = (r.outputs_in(r.rows(0, 0)) for r in (recording, old))
    np.testing.assert_array_equal(one["output_0"], two["output_0"])
