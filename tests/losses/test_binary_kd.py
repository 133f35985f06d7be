"""BinaryKD: shapes of one unit and of several labels, limits, errors."""

import keras
import numpy as np
import pytest
from common import to_numpy
from common import value_and_gradient

from keras_distill import BinaryKD
from keras_distill import ClassicKD

TEACHER = np.array([3.0, -1.0, 0.5, -8.0], "float32")
STUDENT = np.array([1.0, -2.0, -0.5, 4.0], "float32")
LABELS = np.array([1, 0, 0, 1])


def value(loss, labels, shape=(4,)):
    y_true = {"labels": labels, "teacher": TEACHER.reshape(shape)}
    return float(loss(y_true, STUDENT.reshape(shape)))


def test_by_hand():
    # At T = 2 the teacher is sigmoid(1.5) = 0.8176, the student 0.6225.
    p, q = 0.817574, 0.622459
    soft = 4 * -(p * np.log(q) + (1 - p) * np.log(1 - q))
    hard = -np.log(0.731059)
    loss = BinaryKD(0.3, 2.0, reduction="none")
    actual = loss({"labels": LABELS, "teacher": TEACHER}, STUDENT)
    np.testing.assert_allclose(
        to_numpy(actual)[0], 0.3 * soft + 0.7 * hard, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["int32", "bool", "float32", "uint8"])
@pytest.mark.parametrize("label_loss", [None, "binary_crossentropy", "mse"])
def test_every_shape_of_one_unit_means_the_same(label_loss, dtype):
    loss = BinaryKD(0.3, 2.0, label_loss=label_loss)
    labels = LABELS.astype(dtype)
    expected = value(loss, labels)
    assert value(loss, labels[:, None]) == expected
    assert value(loss, labels, (4, 1)) == expected
    assert value(loss, labels[:, None], (4, 1)) == expected


def test_the_teacher_may_lack_the_last_axis():
    y_true = {"labels": LABELS, "teacher": TEACHER}
    other = {"labels": LABELS, "teacher": TEACHER[:, None]}
    loss, expected = BinaryKD(), value(BinaryKD(), LABELS)
    assert float(loss(y_true, STUDENT[:, None])) == expected
    assert float(loss(other, STUDENT)) == expected


@pytest.mark.parametrize(
    ("shape", "places"),
    [((4,), (4,)), ((4, 1), (4,)), ((2, 2), (2,)), ((1, 2, 2), (1, 2))],
)
def test_one_value_per_sample_and_the_mean_over_labels(shape, places):
    rows = BinaryKD(0.3, reduction="none")(
        {"labels": LABELS.reshape(shape), "teacher": TEACHER.reshape(shape)},
        STUDENT.reshape(shape),
    )
    assert rows.shape == places
    np.testing.assert_allclose(
        to_numpy(rows).mean(), value(BinaryKD(0.3), LABELS), rtol=1e-6
    )


@pytest.mark.parametrize("from_logits", [True, False])
def test_labels_alone_are_the_loss_of_keras(from_logits):
    student = STUDENT if from_logits else 1 / (1 + np.exp(-STUDENT))
    student = student.reshape(2, 2)
    labels = np.array([[1, 0], [0.3, 1]], "float32")
    kwargs = {"from_logits": from_logits}
    expected = keras.losses.BinaryCrossentropy(**kwargs)(labels, student)
    for label_loss in (
        None,
        "binary_crossentropy",
        keras.losses.binary_crossentropy,
        keras.losses.BinaryCrossentropy(**kwargs),
    ):
        loss = BinaryKD(0.0, label_loss=label_loss, **kwargs)
        actual = loss({"labels": labels, "teacher": 0 * student}, student)
        np.testing.assert_allclose(float(actual), float(expected), rtol=1e-6)


def test_it_is_classic_kd_for_the_logits_0_and_s():
    classic = ClassicKD(0.4, 3.0)
    teacher, student = (np.stack([0 * z, z], -1) for z in (TEACHER, STUDENT))
    np.testing.assert_allclose(
        value(BinaryKD(0.4, 3.0), LABELS),
        float(classic({"labels": LABELS, "teacher": teacher}, student)),
        rtol=1e-6,
    )


def test_probabilities_are_softened_through_their_logits():
    sigmoids = [1 / (1 + np.exp(-z)) for z in (TEACHER, STUDENT)]
    loss = BinaryKD(0.4, 3.0, from_logits=False)
    actual = loss({"labels": LABELS, "teacher": sigmoids[0]}, sigmoids[1])
    np.testing.assert_allclose(
        float(actual), value(BinaryKD(0.4, 3.0), LABELS), rtol=1e-6
    )


def test_an_equal_student_has_no_gradient():
    _, gradient = value_and_gradient(
        lambda s: BinaryKD(1.0, 4.0)({"teacher": TEACHER}, s), TEACHER
    )
    np.testing.assert_allclose(gradient, 0 * TEACHER, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (np.array([0, 1]), (2, 2)),
        (np.array([[0], [1]]), (2, 2)),
        (np.zeros((4, 2)), (4, 1)),
        (np.zeros(3), (4, 1)),
        (np.zeros((4, 1, 1)), (4, 1)),
    ],
)
@pytest.mark.parametrize("label_loss", [None, "binary_crossentropy"])
def test_class_indices_and_other_shapes_are_refused(label_loss, labels, shape):
    message = r"labels of shape .*outputs of shape.*for each output.*one_hot"
    with pytest.raises(ValueError, match=message):
        value(BinaryKD(label_loss=label_loss), labels, shape)


def test_another_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="must have the same shape"):
        BinaryKD()(
            {"labels": LABELS, "teacher": TEACHER.reshape(2, 2)},
            STUDENT.reshape(4, 1),
        )


@pytest.mark.parametrize(
    "label_loss",
    [
        "categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.CategoricalFocalCrossentropy(from_logits=True),
    ],
)
def test_losses_for_a_softmax_are_refused(label_loss):
    with pytest.raises(ValueError, match="classes that exclude each other"):
        BinaryKD(label_loss=label_loss)


@pytest.mark.parametrize("from_logits", [True, False])
def test_a_label_loss_that_contradicts_is_refused(from_logits):
    other = keras.losses.BinaryCrossentropy(from_logits=not from_logits)
    with pytest.raises(ValueError, match=r"`label_loss` takes .* and the"):
        BinaryKD(label_loss=other, from_logits=from_logits)


def test_missing_labels():
    with pytest.raises(ValueError, match=r"the data has none.*`alpha=1`"):
        BinaryKD(0.9)({"teacher": TEACHER}, STUDENT)
    assert np.isfinite(float(BinaryKD(1.0)(TEACHER, STUDENT)))
