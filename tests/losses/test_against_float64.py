"""Values and gradients compared with float64, over the supported range.

The tolerance is 1e-5 relative plus 1e-6 T^2 absolute: at a high temperature,
the divergence is a small difference of large terms. If a gradient is divided by
a standard deviation, so is its tolerance. The test of correlations over the
batch defines its own tolerance.
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


@hypothesis.given(teacher=LOGITS, student=LOGITS, temperature=TEMPERATURES)
def test_standardized_logits(teacher, student, temperature):
    loss = keras_distill.FunctionMatching(
        temperature, standardize_logits=True, reduction="none"
    )
    expected = [
        reference.standardized_function_matching(t, s, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(to_numpy(loss(teacher, student)), expected, temperature)


@hypothesis.given(teacher=LOGITS, student=LOGITS, temperature=TEMPERATURES)
def test_standardized_logits_gradient(teacher, student, temperature):
    loss = keras_distill.FunctionMatching(
        temperature, standardize_logits=True, reduction="sum"
    )
    _, actual = value_and_gradient(lambda s: loss(teacher, s), student)
    for t, s, gradient in zip(teacher, student, actual):
        std = reference.z_scores(s)[1]
        expected = reference.standardized_function_matching_gradient(
            t, s, temperature
        )
        # Times the deviation: the gradient for the z-scores.
        assert_close(gradient * std, expected * std, temperature)


@hypothesis.given(teacher=LOGITS, student=LOGITS, temperature=TEMPERATURES)
def test_dist_over_classes(teacher, student, temperature):
    """Includes nearly constant rows: `expm1` keeps their digits."""
    loss = keras_distill.DIST(
        intra_weight=0.0,
        label_weight=0.0,
        temperature=temperature,
        reduction="sum",
    )
    value, actual = value_and_gradient(
        lambda s: loss({"teacher": teacher}, s), student
    )
    total = 0.0
    for t, s, gradient in zip(teacher, student, actual):
        expected, slope = reference.dist_inter(t, s, temperature)
        total += expected
        log_q = reference.soften(s, temperature)
        std = reference.z_scores(np.exp(log_q - max(log_q)))[1]
        assert_close(gradient * std, slope * std, temperature)
    assert_close(value, total, temperature)


BATCHES = hnp.arrays(
    "float32",
    (5, 3),
    elements=st.floats(-1e4, 1e4, width=32)
    | st.floats(-10, 10, width=32)
    | st.floats(9990, 10000, width=32),
    fill=st.nothing(),
)


@hypothesis.given(teacher=BATCHES, student=BATCHES, temperature=TEMPERATURES)
def test_dist_over_the_batch(teacher, student, temperature):
    """The tolerance grows as the samples become more similar.

    A log-probability `l` has an error of about `1e-7 (1 + |l|)`. The error of
    the z-scores of a class is this error divided by the standard deviation of
    its probabilities, and the gradient is divided by it again. Values that are
    constant in float32 are exact. Values between these two cases are not
    compared.
    """
    error, smallest = 0.0, 1.0
    for logits in (teacher, student):
        logs = np.array([reference.soften(row, temperature) for row in logits])
        for column in logs.T:
            std = np.std(np.exp(column - max(column)))
            if std >= 1e-7:
                noise = 1e-7 * (1 + np.max(np.abs(column)))
                error, smallest = max(error, noise / std), min(smallest, std)
    hypothesis.assume(error < 0.05)
    loss = keras_distill.DIST(
        inter_weight=0.0, label_weight=0.0, temperature=temperature
    )
    value, actual = value_and_gradient(
        lambda s: loss({"teacher": teacher}, s), student
    )
    expected, slope = reference.dist_intra(teacher, student, temperature)
    tolerance = 1e-6 + error
    assert abs(value - expected) <= tolerance * temperature**2
    np.testing.assert_allclose(
        actual, slope, rtol=1e-5, atol=tolerance * temperature / smallest
    )


def test_dist_of_a_class_that_is_improbable_in_every_sample():
    """Its log-probabilities, about -7000, differ by less than 0.7."""
    temperature = 0.7
    margins = np.array([0.1, 0.2, 0.5, 1.0, 3.0], "float32")
    student = np.stack([0 * margins, -margins, 0 * margins - 5000.3], axis=1)
    teacher = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    loss = keras_distill.DIST(
        0.0, 1.0, label_weight=0.0, temperature=temperature
    )
    value, actual = value_and_gradient(
        lambda s: loss({"teacher": teacher}, s), student
    )
    expected, slope = reference.dist_intra(teacher, student, temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(actual, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 2.0**-9, 2.0**-6])
def test_standardized_logits_far_from_zero(spread):
    """The mean of logits of 1e4 has an error as large as these spreads."""
    student = np.float32(9999.9) + spread * np.array([[0, 1, 0, 2, 4, 0, 1]])
    student = student.astype("float32")
    teacher = np.random.default_rng(0).normal(size=(1, 7)).astype("float32")
    loss = keras_distill.FunctionMatching(standardize_logits=True)
    np.testing.assert_allclose(
        float(loss(teacher, student)),
        reference.standardized_function_matching(teacher[0], student[0], 1.0),
        rtol=1e-5,
    )


WEIGHTS = st.tuples(*[st.floats(0.1, 10.0)] * 3)


@hypothesis.given(
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    weights=WEIGHTS,
    label=st.integers(0, 3),
)
def test_decoupled_kd(teacher, student, temperature, weights, label):
    loss = keras_distill.DecoupledKD(
        *weights[:2],
        label_weight=weights[2],
        temperature=temperature,
        reduction="none",
    )
    y_true = {"labels": np.array([label, label]), "teacher": teacher}
    expected = [
        reference.decoupled_kd(label, t, s, weights, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(
        to_numpy(loss(y_true, student)), expected, temperature, max(weights)
    )


@hypothesis.given(
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    weights=WEIGHTS,
    label=st.integers(0, 3),
)
def test_decoupled_kd_gradient(teacher, student, temperature, weights, label):
    loss = keras_distill.DecoupledKD(
        *weights[:2],
        label_weight=weights[2],
        temperature=temperature,
        reduction="sum",
    )
    y_true = {"labels": np.array([label, label]), "teacher": teacher}
    _, actual = value_and_gradient(lambda s: loss(y_true, s), student)
    expected = [
        reference.decoupled_kd_gradient(label, t, s, weights, temperature)
        for t, s in zip(teacher, student)
    ]
    assert_close(actual, expected, temperature, max(weights))


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


@pytest.mark.parametrize(
    "loss",
    [
        keras_distill.ClassicKD(0.0, 2.0, from_logits=False),
        keras_distill.ClassicKD(0.5, 2.0, from_logits=False),
        keras_distill.ClassicKD(1.0, 2.0, from_logits=False),
        keras_distill.ClassicKD(
            1.0, 2.0, from_logits=False, standardize_logits=True
        ),
        keras_distill.DIST(from_logits=False),
        keras_distill.DecoupledKD(from_logits=False),
    ],
)
def test_probabilities_of_zero_stay_finite(loss):
    one_hot = np.eye(3, dtype="float32")
    y_true = {"labels": np.arange(3), "teacher": one_hot}
    value, gradient = value_and_gradient(
        lambda s: loss(y_true, s), np.roll(one_hot, 1, axis=0)
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


LABELS = hnp.arrays("float32", (2, 4), elements=st.floats(0, 1, width=32))


@hypothesis.given(
    labels=LABELS,
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    alpha=st.floats(0, 1),
)
def test_binary_kd(labels, teacher, student, temperature, alpha):
    loss = keras_distill.BinaryKD(alpha, temperature, reduction="none")
    actual = loss({"labels": labels, "teacher": teacher}, student)
    expected = [
        reference.binary_kd(y, t, s, alpha, temperature)
        for y, t, s in zip(labels, teacher, student)
    ]
    assert_close(to_numpy(actual), expected, temperature)


@hypothesis.given(
    labels=LABELS,
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    alpha=st.floats(0, 1),
)
def test_binary_kd_gradient(labels, teacher, student, temperature, alpha):
    loss = keras_distill.BinaryKD(alpha, temperature, reduction="sum")
    _, actual = value_and_gradient(
        lambda s: loss({"labels": labels, "teacher": teacher}, s), student
    )
    expected = [
        reference.binary_kd_gradient(y, t, s, alpha, temperature)
        for y, t, s in zip(labels, teacher, student)
    ]
    assert_close(actual, expected, temperature)


PROBABILITIES = hnp.arrays(
    "float32",
    (2, 4),
    elements=st.floats(0, 1, width=32)
    | st.sampled_from([0.0, 1.0, 1.0 - 2.0**-24, 1e-45, 1e-37, 1e-20]),
)


@hypothesis.given(
    labels=LABELS,
    teacher=PROBABILITIES,
    student=PROBABILITIES,
    temperature=TEMPERATURES,
)
def test_binary_kd_of_probabilities(labels, teacher, student, temperature):
    """Moderate values are compared; all values and gradients are finite."""
    loss = keras_distill.BinaryKD(0.5, temperature, from_logits=False)
    value, gradient = value_and_gradient(
        lambda s: loss({"labels": labels, "teacher": teacher}, s), student
    )
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    teacher, student = np.clip(teacher, 1e-6, 0.99), np.clip(student, 0.01, 0.9)
    value, gradient = value_and_gradient(
        lambda s: loss({"labels": labels, "teacher": teacher}, s), student
    )
    teacher, student = teacher.astype("float64"), student.astype("float64")
    rows = [
        (y, np.log(t / (1 - t)), np.log(s / (1 - s)), 0.5, temperature)
        for y, t, s in zip(labels, teacher, student)
    ]
    expected = [reference.binary_kd(*row) for row in rows]
    slopes = [reference.binary_kd_gradient(*row) for row in rows]
    assert_close(value, np.mean(expected), temperature)
    slopes = np.array(slopes) / 2 / (student * (1 - student))
    assert_close(gradient, slopes, temperature, 100)


VALUES = hnp.arrays(
    "float32",
    (2, 4),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
    | st.floats(-2, 2, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "cosine"])
@hypothesis.given(
    labels=VALUES, teacher=VALUES, student=VALUES, alpha=st.floats(0, 1)
)
def test_value_matching(name, labels, teacher, student, alpha):
    if name == "cosine":
        for vectors in (labels, teacher, student):
            lengths = np.max(np.abs(vectors), axis=-1)
            hypothesis.assume(np.min(lengths) > 1e-6)
    if name == "mae":  # The slope at 0 is any number from -1 to 1.
        hypothesis.assume(np.all(labels != student))
        hypothesis.assume(np.all(teacher != student))
    loss = keras_distill.ValueMatching(name, alpha, reduction="sum")
    value, gradient = value_and_gradient(
        lambda s: loss({"labels": labels, "teacher": teacher}, s), student
    )
    expected, slopes = zip(
        *[
            reference.value_matching(y, t, s, name, alpha)
            for y, t, s in zip(labels, teacher, student)
        ]
    )
    np.testing.assert_allclose(value, sum(expected), rtol=1e-5, atol=1e-6)
    # The gradient of a cosine has the size of 1 / |s|.
    scale = np.linalg.norm(np.float64(student), axis=-1, keepdims=True)
    scale = scale if name == "cosine" else 1.0
    np.testing.assert_allclose(
        gradient * scale, np.array(slopes) * scale, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
@hypothesis.given(
    teacher=LOGITS,
    student=LOGITS,
    temperature=TEMPERATURES,
    beta=st.floats(1e-9, 1 - 1e-9),
)
def test_divergences(kind, teacher, student, temperature, beta):
    loss = keras_distill.FunctionMatching(
        temperature, divergence=kind, beta=beta, reduction="sum"
    )
    value, actual = value_and_gradient(lambda s: loss(teacher, s), student)
    total = 0.0
    for t, s, gradient in zip(teacher, student, actual):
        expected, slope = reference.generalized_divergence(
            t, s, temperature, kind, beta
        )
        total += expected
        # The reverse gradient is a difference of terms of this size.
        largest = max(np.max(np.abs(slope)), 1.0)
        assert_close(gradient, slope, temperature, largest)
    assert_close(value, total, temperature)
