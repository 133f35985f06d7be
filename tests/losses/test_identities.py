"""Limits and identities, which are true for all numbers."""

import keras
import numpy as np
import pytest
from common import mlp
from common import same_weights
from common import to_numpy
from common import value_and_gradient
from common import vectors
from common import weights_of

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import DecoupledKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill.losses import _divergence


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


def test_kl_is_cross_entropy_minus_the_entropy_of_the_teacher():
    teacher, student = logits(0), logits(1)
    entropy = _divergence.soft_cross_entropy(teacher, teacher, 3.0)
    np.testing.assert_allclose(
        to_numpy(_divergence.kl_divergence(teacher, student, 3.0)),
        to_numpy(_divergence.soft_cross_entropy(teacher, student, 3.0))
        - to_numpy(entropy),
        atol=1e-5,
    )


def test_a_confidently_wrong_student_gets_the_full_gradient():
    """A KL divergence of clipped probabilities has no gradient here."""
    teacher = np.array([[200.0, 0.0]], "float32")
    student = np.array([[0.0, 200.0]], "float32")
    _, gradient = value_and_gradient(
        lambda s: FunctionMatching()(teacher, s), student
    )
    np.testing.assert_allclose(gradient, [[-1.0, 1.0]], atol=1e-6)


STANDARDIZED = [
    FunctionMatching(2.0, standardize_logits=True),
    ClassicKD(1.0, 2.0, standardize_logits=True),
]


@pytest.mark.parametrize("loss", STANDARDIZED, ids=lambda o: o.name)
@pytest.mark.parametrize("scale", [1e-3, 0.5, 1000.0])
def test_standardized_logits_have_no_scale_and_no_shift(loss, scale):
    teacher, student = logits(0), logits(1)
    expected = float(loss({"teacher": teacher}, student))
    shift = np.array([[8.0]] * 6, "float32") * scale
    for y_true, y_pred in (
        (scale * teacher, student),
        (teacher, scale * student),
        (teacher + shift, scale * student - shift),
    ):
        actual = float(loss({"teacher": y_true}, y_pred))
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_labels_are_compared_with_the_original_logits():
    y_true = {"labels": np.arange(6), "teacher": logits(0)}
    student = logits(1)
    _, plain = ClassicKD().parts()["label_loss"]
    _, standardized = ClassicKD(standardize_logits=True).parts()["label_loss"]
    np.testing.assert_array_equal(
        to_numpy(standardized(y_true, student)),
        to_numpy(plain(y_true, student)),
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_dist_of_equal_softmax_is_zero(temperature):
    same = logits(0)
    loss = DIST(label_weight=0.0, temperature=temperature)
    value, gradient = value_and_gradient(
        lambda s: loss({"teacher": same + 4.0}, s), same
    )
    assert abs(value) < 1e-9 * temperature**2
    assert np.all(np.abs(gradient) < 1e-5 * temperature)


def test_dist_of_linear_probabilities_is_zero():
    """A linear map of the probabilities does not change the correlation."""
    teacher = np.exp(logits(0))
    teacher /= teacher.sum(-1, keepdims=True)
    student = 0.5 * teacher + 0.5 / 7
    loss = DIST(label_weight=0.0, from_logits=False)
    assert abs(float(loss(teacher, student))) < 1e-8


def test_dist_of_opposite_predictions_is_two():
    teacher = np.array([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]], "float32")
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        loss = DIST(*weights, label_weight=0.0, from_logits=False)
        rows = slice(0, 2) if weights[0] else slice(0, 3)
        value = float(loss(teacher[rows], teacher[rows, ::-1]))
        np.testing.assert_allclose(value, 2.0, rtol=1e-5)


CONSTANT = np.zeros((6, 7), "float32")


@pytest.mark.parametrize(
    "loss",
    [
        *STANDARDIZED,
        DIST(1.0, 0.0, label_weight=0.0, temperature=2.0),
        DIST(0.0, 1.0, label_weight=0.0, temperature=2.0),
    ],
    ids=["standardized", "standardized_kd", "inter", "intra"],
)
@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_constant_predictions(loss, constant):
    """A last layer of zeros learns, with gradients of the usual size."""
    teacher = logits(0) if constant == "student" else CONSTANT
    student = logits(1) if constant == "teacher" else CONSTANT
    value, gradient = value_and_gradient(
        lambda s: loss({"teacher": teacher}, s), student
    )
    assert np.isfinite(value)
    assert np.all(np.abs(gradient) < 1.0)
    if constant == "student":
        assert np.max(np.abs(gradient)) > 0.01
    if isinstance(loss, DIST):
        expected = 0.0 if constant == "both" else loss.temperature**2 / 2
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_dist_over_a_batch_of_one():
    loss = DIST(inter_weight=0.0, label_weight=0.0)
    value, gradient = value_and_gradient(
        lambda s: loss({"teacher": logits(0, 1)}, s), logits(1, 1)
    )
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_decoupled_parts_add_up_to_the_divergence(temperature):
    """`KL = TCKD + (1 - p_target) * NCKD`, equation 6 of the paper."""
    teacher, student, labels = logits(0), logits(1), np.arange(6) % 7
    y_true = {"labels": labels, "teacher": teacher}
    parts = DecoupledKD(temperature=temperature).parts()
    target, others = (
        to_numpy(parts[name][1](y_true, student))
        for name in ("target_loss", "non_target_loss")
    )
    p = np.exp(teacher / temperature)
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        target + (1 - p[np.arange(6), labels]) * others,
        to_numpy(
            FunctionMatching(temperature, reduction="none")(teacher, student)
        ),
        rtol=1e-4,
        atol=1e-6 * temperature**2,
    )


def test_two_classes_have_no_non_target_loss():
    loss = DecoupledKD(target_weight=0.0, label_weight=0.0)
    y_true = {"labels": np.arange(6) % 2, "teacher": logits(0, classes=2)}
    value, gradient = value_and_gradient(
        lambda s: loss(y_true, s), logits(1, classes=2)
    )
    assert value == 0
    assert not np.any(gradient)


def test_ensemble_of_equal_teachers_is_the_teacher():
    teacher = logits(0)
    mean = _divergence.mean_of_teachers([teacher, teacher], True)
    np.testing.assert_allclose(
        to_numpy(_divergence.kl_divergence(teacher, mean, 1.0)), 0, atol=1e-6
    )


def test_ensemble_averages_probabilities():
    first, second = logits(0), logits(1)
    mean = to_numpy(_divergence.mean_of_teachers([first, second], True))
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


def matching(divergence, beta=0.5, temperature=2.0):
    return FunctionMatching(temperature, divergence=divergence, beta=beta)


def test_reverse_is_forward_with_the_models_exchanged():
    teacher, student = logits(0), logits(1)
    np.testing.assert_allclose(
        float(matching("reverse")(teacher, student)),
        float(matching("forward")(student, teacher)),
        rtol=1e-5,
    )


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jensen_shannon_with_the_models_exchanged(beta):
    """With `1 - beta`, the models can be exchanged; 0.5 is symmetric."""
    teacher, student = logits(0), logits(1)
    np.testing.assert_allclose(
        float(matching("jensen_shannon", beta)(teacher, student)),
        float(matching("jensen_shannon", 1 - beta)(student, teacher)),
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_jensen_shannon_tends_to_both_kl_divergences(kind):
    teacher, student = logits(0, scale=1.0), logits(1, scale=1.0)
    share = 1e-4
    beta = share if kind == "forward" else 1 - share
    actual = float(matching("jensen_shannon", beta)(teacher, student)) / share
    expected = float(matching(kind)(teacher, student))
    np.testing.assert_allclose(actual, expected, rtol=0.01)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_at_most_the_entropy_of_its_shares(beta):
    teacher, student = 1e4 * np.eye(3, dtype="float32")[[0, 1]]
    entropy = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
    value = matching("jensen_shannon", beta, 1.0)(teacher[None], student[None])
    np.testing.assert_allclose(float(value), entropy, rtol=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_divergences_of_equal_models_are_zero(kind, temperature):
    same = logits(0)
    value, gradient = value_and_gradient(
        lambda s: matching(kind, 0.3, temperature)(same, s), same
    )
    assert abs(value) < 1e-6 * temperature**2
    assert np.all(np.abs(gradient) < 1e-6 * temperature + 1e-6)
