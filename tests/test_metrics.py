import keras
import numpy as np
import pytest
from common import to_numpy

from keras_distill import FunctionMatching
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence

TEACHER = np.array([[3.0, 1, 0], [0, 2, 1], [0, 0, 5], [1, 0, 0]], "float32")
STUDENT = np.array([[1.0, 0, 0], [2, 1, 0], [0, 1, 3], [0, 2, 1]], "float32")


def test_agreement():
    assert float(TeacherAgreement()(TEACHER, STUDENT)) == 0.5
    # The teacher's second class is the student's second; its fourth is third.
    assert float(TeacherAgreement(k=2)(TEACHER, STUDENT)) == 0.75
    assert float(TeacherAgreement(k=9)(TEACHER, STUDENT)) == 1.0


def test_a_student_of_equal_outputs_does_not_agree_with_everything():
    assert float(TeacherAgreement()(TEACHER, np.ones_like(STUDENT))) == 0.5


def test_divergence_is_the_loss():
    expected = float(FunctionMatching()(TEACHER, STUDENT))
    np.testing.assert_allclose(
        float(TeacherDivergence()(TEACHER, STUDENT)), expected, rtol=1e-6
    )
    softmax = [to_numpy(keras.ops.softmax(x)) for x in (TEACHER, STUDENT)]
    probabilities = TeacherDivergence(from_logits=False)
    np.testing.assert_allclose(
        float(probabilities(*softmax)), expected, rtol=1e-4
    )


@pytest.mark.parametrize("metric", [TeacherAgreement(), TeacherDivergence()])
def test_batches_and_weights_add_up(metric):
    whole = float(
        metric(TEACHER, STUDENT, sample_weight=np.array([1, 1, 0, 2]))
    )
    metric.reset_state()
    metric.update_state(TEACHER[:2], STUDENT[:2])
    metric.update_state({"teacher": TEACHER[3:]}, STUDENT[3:], np.array([2]))
    np.testing.assert_allclose(float(metric.result()), whole, rtol=1e-6)


@pytest.mark.parametrize(
    "metric",
    [TeacherAgreement(3, name="a"), TeacherDivergence(False, name="d")],
)
def test_config_round_trip(metric):
    twin = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert twin.get_config() == metric.get_config()


@pytest.mark.parametrize("k", [0, -1, 1.5, None, True])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match="`k` must be a whole number above 0"):
        TeacherAgreement(k)
