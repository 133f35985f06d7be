"""Values and gradients against float64, over the range that is promised.

The tolerance is 1e-5 relative plus 1e-6 T^2 absolute: at a high temperature the
divergence is a small difference of large terms.
"""

import hypothesis
import numpy as np
import pytest
from common import to_numpy
from common import value_and_gradient
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import losses as reference

import keras_distill

LOGITS = hnp.arrays(
    "float32",
    (2, 4),
    elements=st.floats(-1e4, 1e4, width=32)
    | st.floats(-10, 10, width=32)
    | st.floats(9990, 10000, width=32),
)
TEMPERATURES = st.floats(0.1, 100.0)


def assert_close(actual, expected, temperature, scale=1.0):
    assert np.all(np.isfinite(actual))
    np.testing.assert_allclose(
        actual, expected, rtol=1e-5, atol=scale * 1e-6 * temperature**2 + 1e-6
    )


@hypothesis.given(teacher=LOGITS, student=LOGITS, temperature=TEMPERATURES)
def test_function_matching(teacher, student, temperature):
    loss = keras_distill.FunctionMatching(temperature, reduction="none")
    actual = to_numpy(loss(teacher, student))
    expected = [
        reference.function_matching(t, s, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(actual, expected, temperature)


@hypothesis.given(teacher=LOGITS, student=LOGITS, temperature=TEMPERATURES)
def test_function_matching_gradient(teacher, student, temperature):
    loss = keras_distill.FunctionMatching(temperature, reduction="sum")
    _, actual = value_and_gradient(lambda s: loss(teacher, s), student)
    expected = [
        reference.function_matching_gradient(t, s, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(actual, expected, temperature)


@hypothesis.given(
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    alpha=st.floats(0, 1),
    label=st.integers(0, 3),
)
def test_classic_kd(teacher, student, temperature, alpha, label):
    loss = keras_distill.ClassicKD(alpha, temperature, reduction="none")
    y_true = {"labels": np.array([label, label]), "teacher": teacher}
    expected = [
        reference.classic_kd(label, t, s, alpha, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(to_numpy(loss(y_true, student)), expected, temperature)


@hypothesis.given(
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    alpha=st.floats(0, 1),
    label=st.integers(0, 3),
)
def test_classic_kd_gradient(teacher, student, temperature, alpha, label):
    loss = keras_distill.ClassicKD(alpha, temperature, reduction="sum")
    labels = np.array([label, label])
    _, actual = value_and_gradient(
        lambda s: loss({"labels": labels, "teacher": teacher}, s), student
    )
    expected = [
        reference.classic_kd_gradient(label, t, s, alpha, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(actual, expected, temperature)


def test_probabilities_equal_their_logits():
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 8, 5)).astype("float32")

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    for temperature in (0.5, 1.0, 4.0):
        logits = keras_distill.FunctionMatching(temperature)
        probabilities = keras_distill.FunctionMatching(
            temperature, from_logits=False
        )
        np.testing.assert_allclose(
            to_numpy(probabilities(softmax(teacher), softmax(student))),
            to_numpy(logits(teacher, student)),
            rtol=1e-4,
        )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_probabilities_of_zero_stay_finite(alpha):
    one_hot = np.eye(3, dtype="float32")
    loss = keras_distill.ClassicKD(alpha, 2.0, from_logits=False)
    y_true = {"labels": np.arange(3), "teacher": one_hot}
    value, gradient = value_and_gradient(
        lambda s: loss(y_true, s), np.roll(one_hot, 1, axis=0)
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
