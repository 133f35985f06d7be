"""The checklist that every loss passes, in the same order for each."""

import keras
import numpy as np
import pytest
from common import mlp
from common import to_numpy
from common import vectors

from keras_distill import ClassicKD
from keras_distill import DistillationLoss
from keras_distill import FunctionMatching

TEACHER = np.array([[2.0, 0.0], [0.0, 0.0]], "float32")
STUDENT = np.array([[0.0, 0.0], [0.0, 4.0]], "float32")
Y_TRUE = {"labels": np.array([0, 0]), "teacher": TEACHER}
LOSSES = [ClassicKD(alpha=0.4, temperature=3.0), FunctionMatching(2.5)]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda o: o.name)


def test_function_matching_by_hand():
    # p = (0.8808, 0.1192) against q = (0.5, 0.5); p = (0.5, 0.5) against
    # q = (0.01799, 0.98201).
    first = 0.880797 * np.log(0.880797 / 0.5) + 0.119203 * np.log(
        0.119203 / 0.5
    )
    second = 0.5 * np.log(0.5 / 0.017986) + 0.5 * np.log(0.5 / 0.982014)
    actual = FunctionMatching(reduction="none")(TEACHER, STUDENT)
    np.testing.assert_allclose(to_numpy(actual), [first, second], rtol=1e-4)


def test_classic_kd_by_hand():
    # At T=2 the first teacher is (0.7311, 0.2689), the student (0.5, 0.5).
    soft = 4 * np.log(2)
    hard = np.log(2)
    actual = ClassicKD(0.3, 2.0, reduction="none")(Y_TRUE, STUDENT)
    np.testing.assert_allclose(
        to_numpy(actual)[0], 0.3 * soft + 0.7 * hard, rtol=1e-5
    )


@each_loss
def test_dict_and_tensor_targets(loss):
    value = float(loss(Y_TRUE, STUDENT))
    assert np.isfinite(value)
    if isinstance(loss, FunctionMatching):
        assert float(loss(TEACHER, STUDENT)) == value


@each_loss
def test_reductions_agree(loss):
    config = loss.get_config()
    rows = type(loss)(**{**config, "reduction": "none"})(Y_TRUE, STUDENT)
    total = type(loss)(**{**config, "reduction": "sum"})(Y_TRUE, STUDENT)
    rows = to_numpy(rows)
    assert rows.shape == (2,)
    np.testing.assert_allclose(float(total), rows.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        float(loss(Y_TRUE, STUDENT)), rows.mean(), rtol=1e-6
    )


@each_loss
def test_sample_weight_weighs_every_part(loss):
    alone = float(loss({k: v[:1] for k, v in Y_TRUE.items()}, STUDENT[:1]))
    weighted = float(loss(Y_TRUE, STUDENT, sample_weight=np.array([1.0, 0.0])))
    np.testing.assert_allclose(weighted, alone / 2, rtol=1e-6)


@each_loss
def test_half_precision_outputs_are_computed_in_float32(loss):
    half = keras.ops.cast(STUDENT * 1000, "float16")
    value = loss({**Y_TRUE, "teacher": TEACHER * 1000}, half)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert np.isfinite(float(value))


@each_loss
def test_dense_predictions(loss):
    """Segmentation: one distribution per position."""
    generator = np.random.default_rng(0)
    y_true = {
        "labels": generator.integers(0, 3, size=(2, 4, 4)),
        "teacher": generator.normal(size=(2, 4, 4, 3)).astype("float32"),
    }
    student = generator.normal(size=(2, 4, 4, 3)).astype("float32")
    rows = type(loss)(**{**loss.get_config(), "reduction": "none"})
    assert rows(y_true, student).shape == (2, 4, 4)


@each_loss
def test_config_round_trip_keeps_everything(loss):
    config = {**loss.get_config(), "dtype": "float64"}
    twin = type(loss).from_config(config)
    assert twin.get_config() == config
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert restored.get_config() == loss.get_config()
    assert float(restored(Y_TRUE, STUDENT)) == float(loss(Y_TRUE, STUDENT))


def test_label_loss_round_trip():
    loss = ClassicKD(
        label_loss=keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    y_true = {**Y_TRUE, "labels": np.eye(2)}
    assert float(restored(y_true, STUDENT)) == float(loss(y_true, STUDENT))


@pytest.mark.parametrize("labels", [[0, 1], [[0], [1]], [[1, 0], [0, 1]]])
def test_labels_in_every_shape_mean_the_same(labels):
    loss = ClassicKD(alpha=0.5)
    expected = loss({**Y_TRUE, "labels": np.array([0, 1])}, STUDENT)
    actual = loss({**Y_TRUE, "labels": np.array(labels)}, STUDENT)
    np.testing.assert_allclose(float(actual), float(expected), rtol=1e-6)


def test_student_trains_on_stored_teacher_outputs():
    x, _ = vectors()
    teacher, student = mlp(16), mlp(8)
    student.compile(keras.optimizers.Adam(0.02), FunctionMatching())
    answers = teacher.predict(x, verbose=0)
    losses = student.fit(x, answers, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@keras.saving.register_keras_serializable(package="test")
class LogitDistance(DistillationLoss):
    def call(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        return keras.ops.mean(keras.ops.square(teacher - student), axis=-1)


def test_own_loss():
    value = LogitDistance()({"teacher": TEACHER}, STUDENT)
    np.testing.assert_allclose(float(value), (2.0 + 8.0) / 2)


@pytest.mark.parametrize(
    "temperature", [0, -1, float("nan"), float("inf"), "4"]
)
@pytest.mark.parametrize("loss", [ClassicKD, FunctionMatching])
def test_temperature_out_of_range(loss, temperature):
    with pytest.raises(
        ValueError, match="`temperature` must be a finite number"
    ):
        loss(temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), None, True])
def test_alpha_out_of_range(alpha):
    with pytest.raises(
        ValueError, match="`alpha` must be a number from 0 to 1"
    ):
        ClassicKD(alpha=alpha)


def test_labels_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"Labels of shape \(2, 3\) don't fit"):
        ClassicKD()({**Y_TRUE, "labels": np.zeros((2, 3))}, STUDENT)


def test_missing_labels():
    message = r"gives the labels a weight of 0.1, and the data has no labels"
    with pytest.raises(ValueError, match=message):
        ClassicKD(alpha=0.9)({"teacher": TEACHER}, STUDENT)


def test_alpha_one_needs_no_labels():
    assert np.isfinite(
        float(ClassicKD(alpha=1.0)({"teacher": TEACHER}, STUDENT))
    )


def test_different_class_counts():
    message = r"teacher predicts 3 classes and the student 2.*2 units|3 units"
    with pytest.raises(ValueError, match=message):
        FunctionMatching()(np.zeros((2, 3), "float32"), STUDENT)


def test_different_ranks():
    with pytest.raises(ValueError, match="must have the same rank"):
        FunctionMatching()(np.zeros((2, 3, 2), "float32"), STUDENT)


def test_a_single_class():
    one = np.zeros((4, 1), "float32")
    with pytest.raises(ValueError, match="A softmax over a single class"):
        FunctionMatching()(one, one)


@pytest.mark.parametrize("name", ["temperature", "alpha", "from_logits"])
def test_arguments_are_fixed(name):
    with pytest.raises(AttributeError, match=f"`{name}` of a ClassicKD can't"):
        setattr(ClassicKD(), name, 0.5)
