"""What is kept of an output with many classes."""

import keras
import numpy as np
import pytest
from common import to_numpy
from keras import ops

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import DecoupledKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import TeacherAgreement
from keras_distill import record_teacher
from keras_distill.recording._top_k import most_probable

pytestmark = pytest.mark.any_backend

CLASSES = 300


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("top_k", [1, 7, CLASSES])
def test_against_float64(from_logits, scale, top_k):
    logits = scale * np.random.default_rng(0).normal(size=(4, 3, CLASSES))
    exact = np.exp(logits - logits.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    outputs = (logits if from_logits else exact).astype("float32")
    found = to_numpy(
        most_probable(ops.convert_to_tensor(outputs), top_k, from_logits)
    )
    ordered = -np.sort(-exact, axis=-1)
    for expected in (
        ordered[..., :top_k],
        np.take_along_axis(exact, found["classes"], -1),
    ):
        np.testing.assert_allclose(
            np.exp(found["log_probs"]), expected, rtol=1e-4, atol=1e-37
        )
    rest = ordered[..., top_k:].sum(-1)
    others = max(CLASSES - top_k, 1)
    np.testing.assert_allclose(
        np.exp(found["log_rest"].astype("float64")) * others,
        rest,
        rtol=1e-3,
        # Of the least probable class that is kept, float32 has seven digits.
        atol=1e-6 * ordered[..., top_k - 1].max() + 1e-28,
    )


@pytest.mark.parametrize("size", [5000, 5120])
def test_many_classes_are_searched_by_groups(size):
    logits = np.random.default_rng(0).normal(size=(2, 3, size))
    logits = logits.astype("float32")
    logits[0, 0, 1] = -np.inf
    found = to_numpy(most_probable(ops.convert_to_tensor(logits), 16, True))
    expected = np.argsort(-logits, axis=-1, kind="stable")[..., :16]
    np.testing.assert_array_equal(found["classes"], expected)


def test_classes_of_one_probability_are_counted_once():
    found = to_numpy(most_probable(ops.zeros((2, 10)), 3, True))
    np.testing.assert_allclose(np.exp(found["log_probs"]), 0.1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(found["log_rest"]), 0.1, rtol=1e-6)


def fields_of(teacher, top_k):
    found = most_probable(ops.convert_to_tensor(teacher), top_k, True)
    return to_numpy(found)


def with_rest(logits, classes, temperature):
    """Return probabilities of some classes, and of all others together."""
    exps = logits.astype("float64") / temperature
    exps = np.exp(exps - exps.max(-1, keepdims=True))
    kept = np.take_along_axis(exps, classes, -1)
    np.put_along_axis(exps, classes, 0.0, -1)
    both = np.concatenate([kept, exps.sum(-1, keepdims=True)], -1)
    return both / both.sum(-1, keepdims=True)


def divergences(p, q):
    m = (p + q) / 2
    return {
        "forward": (p * np.log(p / q)).sum(-1),
        "jensen_shannon": 0.5 * (p * np.log(p / m)).sum(-1)
        + 0.5 * (q * np.log(q / m)).sum(-1),
        "cross_entropy": -(p * np.log(q)).sum(-1),
    }


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("name", ["forward", "jensen_shannon", "cross_entropy"])
def test_losses_compare_the_rest_as_one_class(name, confident, temperature):
    random = np.random.default_rng(1)
    logits = 3 * random.normal(size=(2, 4, 3, CLASSES)).astype("float32")
    teacher, student = logits
    fields = fields_of(teacher, 7)
    if confident:  # the rest of the student is below one in 2 ** 24
        kept = np.take_along_axis(student, fields["classes"], -1)
        np.put_along_axis(student, fields["classes"], kept + 40, -1)
    if name == "cross_entropy":
        loss = ClassicKD(alpha=1.0, temperature=temperature)
    else:
        loss = FunctionMatching(temperature, divergence=name)
    _, compare = loss.parts()["soft_loss"]
    values = compare({"teacher": fields}, ops.convert_to_tensor(student))
    # The rest of a teacher has the probability of equal classes.
    log_probs = np.log(with_rest(teacher, fields["classes"], 1.0))
    spread = np.empty_like(teacher, "float64")
    spread[:] = log_probs[..., -1:] - np.log(CLASSES - 7)
    np.put_along_axis(spread, fields["classes"], log_probs[..., :-1], -1)
    p = with_rest(spread, fields["classes"], temperature)
    q = with_rest(student, fields["classes"], temperature)
    np.testing.assert_allclose(
        to_numpy(values),
        temperature**2 * divergences(p, q)[name],
        rtol=2e-5,
    )


def test_with_all_classes_nothing_is_left_out():
    random = np.random.default_rng(2)
    teacher, student = random.normal(size=(2, 5, 9)).astype("float32")
    loss = FunctionMatching(2.0)
    np.testing.assert_allclose(
        loss({"teacher": fields_of(teacher, 9)}, student),
        loss({"teacher": teacher}, student),
        rtol=1e-5,
        atol=1e-6,
    )


def one_layer(activation, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(CLASSES, activation)]
    )


LOSSES = {
    "forward": lambda **kw: FunctionMatching(2.0, **kw),
    "labels": lambda **kw: ClassicKD(0.5, **kw),
    "all classes": lambda **kw: DecoupledKD(**kw),
    "a sum": lambda **kw: FunctionMatching(**kw) + 0.5 * DIST(**kw),
}


def value_of(loss, y, fields, outputs, student_outputs):
    """Return the value of a loss that may be a sum."""
    members = getattr(loss, "members", lambda: [((1.0,), loss)])
    value = 0.0
    for weights, member in members():
        teacher = fields if member.reads_most_probable else outputs
        target = {"labels": y, "teacher": teacher}
        value += np.prod(weights) * float(member(target, student_outputs))
    return value


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_replay(tmp_path, loss, from_logits):
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    y = np.arange(8) % CLASSES
    activation = None if from_logits else "softmax"
    teacher, student = (one_layer(activation, seed) for seed in (1, 2))
    recording = record_teacher(
        teacher,
        x,
        tmp_path,
        epochs=1,
        top_k=5,
        from_logits=from_logits,
        storage_dtype="float32",
        verbose=0,
    )
    rows = recording.rows(0, 0)
    fields = recording.fields_in(rows)["output_0"]
    assert sum(field.nbytes for field in fields.values()) == 8 * 11 * 4
    loss = LOSSES[loss](from_logits=from_logits)
    order = rows["sample"]
    expected = value_of(
        loss,
        y[order],
        fields,
        recording.outputs_in(rows)["output_0"],
        student.predict(x[order], verbose=0),
    )
    distiller = Distiller(student=student, teacher=recording)
    distiller.compile("sgd", loss=loss, metrics=[TeacherAgreement()])
    before = student.get_weights()
    logs = distiller.fit(x, y, verbose=0).history
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    assert 0.0 <= logs["teacher_agreement"][0] < 1.0
    assert not np.array_equal(student.get_weights()[0], before[0])


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 1])
def test_another_number_of_classes_is_refused(tmp_path, classes):
    """Of a model without a graph, it is known in the step only."""

    class NoGraph(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(classes)

        def call(self, inputs):
            return self.layer(inputs)

    x = np.zeros((8, 6), "float32")
    recording = record_teacher(
        one_layer(None, 1), x, tmp_path, top_k=5, verbose=0
    )
    distiller = Distiller(student=NoGraph(), teacher=recording)
    distiller.compile("sgd", FunctionMatching())
    with pytest.raises(ValueError, match=f"{CLASSES} classes and the student"):
        distiller.fit(x, verbose=0)
