"""Limits and identities: true whatever the numbers are."""

import keras
import numpy as np
import pytest
from common import mlp
from common import same_weights
from common import to_numpy
from common import value_and_gradient
from common import vectors
from common import weights_of

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill.losses import divergence


def logits(seed, rows=6, classes=7, scale=3.0):
    generator = np.random.default_rng(seed)
    return (scale * generator.normal(size=(rows, classes))).astype("float32")


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_equal_logits_give_zero(temperature):
    same = logits(0)
    assert abs(float(FunctionMatching(temperature)(same, same))) < 1e-6


def test_high_temperature_gives_half_the_variance_of_the_difference():
    teacher, student = logits(0), logits(1)
    limit = 0.5 * np.var(teacher - student, axis=-1).mean()
    actual = float(FunctionMatching(100.0)(teacher, student))
    assert abs(actual - limit) < 0.03 * limit


def test_adding_a_constant_to_all_logits_changes_nothing():
    teacher, student = logits(0), logits(1)
    loss = FunctionMatching(2.0)
    np.testing.assert_allclose(
        float(loss(teacher + 64.0, student - 32.0)),
        float(loss(teacher, student)),
        rtol=1e-5,
    )


def test_kl_is_cross_entropy_less_the_entropy_of_the_teacher():
    teacher, student = logits(0), logits(1)
    entropy = divergence.soft_cross_entropy(teacher, teacher, 3.0)
    np.testing.assert_allclose(
        to_numpy(divergence.kl_divergence(teacher, student, 3.0)),
        to_numpy(divergence.soft_cross_entropy(teacher, student, 3.0))
        - to_numpy(entropy),
        atol=1e-5,
    )


def test_a_confidently_wrong_student_gets_the_full_gradient():
    """KL through clipped probabilities gives none at all here."""
    teacher = np.array([[200.0, 0.0]], "float32")
    student = np.array([[0.0, 200.0]], "float32")
    _, gradient = value_and_gradient(
        lambda s: FunctionMatching()(teacher, s), student
    )
    np.testing.assert_allclose(gradient, [[-1.0, 1.0]], atol=1e-6)


def test_ensemble_of_equal_teachers_is_the_teacher():
    teacher = logits(0)
    mean = divergence.mean_of_teachers([teacher, teacher], True)
    np.testing.assert_allclose(
        to_numpy(divergence.kl_divergence(teacher, mean, 1.0)), 0, atol=1e-6
    )


def test_ensemble_averages_probabilities():
    first, second = logits(0), logits(1)
    mean = to_numpy(divergence.mean_of_teachers([first, second], True))
    softmax = [
        np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (first, second)
    ]
    np.testing.assert_allclose(np.exp(mean), sum(softmax) / 2, rtol=1e-5)


def test_alpha_zero_is_plain_training_step_for_step():
    x, y = vectors(64)
    plain, student = mlp(name="plain"), mlp(name="student")
    student.set_weights(plain.get_weights())
    plain.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    distiller = Distiller(student=student, teacher=mlp(16))
    distiller.compile(keras.optimizers.Adam(0.01), ClassicKD(alpha=0.0))
    for _ in range(3):
        plain.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        assert same_weights(weights_of(plain), weights_of(student), 1e-6)
