"""Sums and multiples of losses: values, gradients, schedules, round trips."""

import keras
import numpy as np
import pytest
from common import to_numpy
from common import value_and_gradient

from keras_distill import DIST
from keras_distill import BinaryKD
from keras_distill import ClassicKD
from keras_distill import FunctionMatching
from keras_distill import ValueMatching

GENERATOR = np.random.default_rng(0)
TEACHER, STUDENT = GENERATOR.normal(size=(2, 5, 3)).astype("float32")
Y_TRUE = {"labels": np.array([0, 1, 2, 1, 0]), "teacher": TEACHER}
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.0], "float32")
MATCH = FunctionMatching(2.0)
CORRELATE = DIST(label_weight=0.0)
VALUES = ValueMatching("huber", name="values")
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def value(loss, weights=None):
    return float(loss(Y_TRUE, STUDENT, weights))


def labels_alone(weights=None):
    return float(CROSS_ENTROPY(Y_TRUE["labels"], STUDENT, weights))


# A sum, with its weights and losses.
SUMS = {
    "two": (MATCH + CORRELATE, {MATCH: 1.0, CORRELATE: 1.0}),
    "multiple": (MATCH + 0.5 * CORRELATE, {MATCH: 1.0, CORRELATE: 0.5}),
    "from the right": (MATCH * 3, {MATCH: 3.0}),
    "nested": (
        2.0 * (MATCH + 0.5 * (CORRELATE + 4.0 * VALUES)),
        {MATCH: 2.0, CORRELATE: 1.0, VALUES: 4.0},
    ),
    "sum()": (
        sum([MATCH, CORRELATE, VALUES]),
        {MATCH: 1.0, CORRELATE: 1.0, VALUES: 1.0},
    ),
    "labels": (
        MATCH + CROSS_ENTROPY,
        {MATCH: 1.0, CROSS_ENTROPY: 1.0},
    ),
    "labels first": (
        CROSS_ENTROPY + 0.25 * MATCH,
        {MATCH: 0.25, CROSS_ENTROPY: 1.0},
    ),
    "no weight": (MATCH + 0.0 * CORRELATE, {MATCH: 1.0}),
}
each_sum = pytest.mark.parametrize("case", SUMS)


@each_sum
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_value(case, weights):
    loss, terms = SUMS[case]
    expected = sum(
        factor
        * (
            labels_alone(weights)
            if term is CROSS_ENTROPY
            else value(term, weights)
        )
        for term, factor in terms.items()
    )
    np.testing.assert_allclose(value(loss, weights), expected, rtol=1e-6)


@each_sum
def test_gradient(case):
    loss, terms = SUMS[case]
    _, actual = value_and_gradient(lambda s: loss(Y_TRUE, s), STUDENT)
    expected = 0.0
    for term, factor in terms.items():
        target = Y_TRUE["labels"] if term is CROSS_ENTROPY else Y_TRUE
        expected = (
            expected
            + factor
            * value_and_gradient(
                lambda s, term=term, target=target: term(target, s), STUDENT
            )[1]
        )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@each_sum
def test_round_trip(case):
    loss, _ = SUMS[case]
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert restored.get_config() == loss.get_config()
    assert value(restored) == value(loss)


def test_each_loss_keeps_its_reduction():
    total = ClassicKD(0.5, reduction="sum")
    np.testing.assert_allclose(
        value(total + MATCH), value(total) + value(MATCH), rtol=1e-6
    )


def test_what_a_sum_uses():
    assert not (MATCH + VALUES).uses_labels
    assert (MATCH + ClassicKD()).uses_labels
    assert (MATCH + CROSS_ENTROPY).uses_labels
    assert not (MATCH + 0.0 * BinaryKD(0.0)).uses_labels
    assert (MATCH + CROSS_ENTROPY).uses_teacher


def halved(step):
    return 0.5 ** keras.ops.cast(step, "float32")


def test_weights_and_numbers_may_be_schedules():
    cooled = keras.optimizers.schedules.PolynomialDecay(4.0, 2, 1.0)
    loss = halved * (FunctionMatching(cooled) + 3.0 * VALUES)
    assert loss.has_schedules
    with pytest.raises(ValueError, match="outside a Distiller"):
        value(loss)
    for step, temperature in ((0, 4.0), (1, 2.5), (2, 1.0), (5, 1.0)):
        expected = value(FunctionMatching(temperature)) + 3.0 * value(VALUES)
        actual = value(loss.at(step))
        np.testing.assert_allclose(actual, 0.5**step * expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "at_two"),
    [
        (ClassicKD(halved, 3.0), ClassicKD(0.25, 3.0)),
        (ClassicKD(0.5, lambda step: 1.0 + step), ClassicKD(0.5, 3.0)),
        (
            FunctionMatching(lambda step: 1.0 + step, divergence="reverse"),
            FunctionMatching(3.0, divergence="reverse"),
        ),
        (
            FunctionMatching(
                lambda step: 1.0 + step, divergence="jensen_shannon"
            ),
            FunctionMatching(3.0, divergence="jensen_shannon"),
        ),
        (
            DIST(halved, 1.0, label_weight=halved),
            DIST(0.25, 1.0, label_weight=0.25),
        ),
        (BinaryKD(halved, lambda step: 1.0 + step), BinaryKD(0.25, 3.0)),
        (ValueMatching("mae", halved), ValueMatching("mae", 0.25)),
    ],
)
def test_schedules_of_single_losses(loss, at_two):
    labels = np.eye(3, dtype="float32")[Y_TRUE["labels"]]
    y_true = {**Y_TRUE, "labels": labels}
    assert loss.has_schedules and not loss.at(2).has_schedules
    np.testing.assert_allclose(
        to_numpy(loss.at(2)(y_true, STUDENT)),
        to_numpy(at_two(y_true, STUDENT)),
        rtol=1e-5,
    )


def test_a_schedule_comes_back_from_a_config():
    cooled = keras.optimizers.schedules.PolynomialDecay(0.9, 2, 0.1)
    loss = cooled * BinaryKD(cooled) + ValueMatching("mse", cooled)
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert restored.get_config() == loss.get_config()
    y_true = {**Y_TRUE, "labels": TEACHER > 0}
    for step in (0, 1, 5):
        assert float(restored.at(step)(y_true, STUDENT)) == float(
            loss.at(step)(y_true, STUDENT)
        )


def test_other_objects_are_refused():
    for other in (1.0, "mse", None):
        with pytest.raises(TypeError):
            MATCH + other
    with pytest.raises(ValueError, match="`weight` must be a finite number"):
        -1.0 * MATCH
    with pytest.raises(ValueError, match="compares with labels, and the data"):
        (MATCH + CROSS_ENTROPY)({"teacher": TEACHER}, STUDENT)
