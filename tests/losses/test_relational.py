"""Relational losses: values, gradients, invariances, padding, shapes."""

import keras
import numpy as np
import pytest
from common import to_numpy
from common import value_and_gradient
from reference import losses as reference

from keras_distill import AttentionTransfer
from keras_distill import RelationalKD
from keras_distill import SimilarityPreserving


def feature(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def places(features):
    features = np.float64(features)
    return features.reshape(len(features), -1, features.shape[-1])


def flat(features):
    return np.float64(features).reshape(len(features), -1)


def attention_reference(p):
    return lambda teacher, student: np.array(
        [
            reference.attention_transfer(t, s, p)
            for t, s in zip(places(teacher), places(student))
        ]
    )


def batch_reference(function, *weights):
    return lambda teacher, student: function(
        flat(teacher), flat(student), *weights
    )


# A loss, its reference, and the shapes of the teacher's and student's features.
CASES = {
    "at": (
        AttentionTransfer(),
        attention_reference(2),
        (5, 4, 3, 6),
        (5, 4, 3, 2),
    ),
    "at_p1": (
        AttentionTransfer(p=1),
        attention_reference(1),
        (5, 7, 6),
        (5, 7, 2),
    ),
    "at_p3": (
        AttentionTransfer(p=3.5),
        attention_reference(3.5),
        (5, 7, 6),
        (5, 7, 6),
    ),
    "sp": (
        SimilarityPreserving(),
        batch_reference(reference.similarity_preserving),
        (5, 4, 4, 3),
        (5, 2, 2, 2),
    ),
    "sp_pooled": (
        SimilarityPreserving(),
        batch_reference(reference.similarity_preserving),
        (5, 4, 3),
        (5, 6),
    ),
    "rkd": (
        RelationalKD(),
        batch_reference(reference.relational_kd, 1.0, 2.0),
        (5, 8),
        (5, 2, 2, 2),
    ),
    "rkd_distances": (
        RelationalKD(1.5, 0.0),
        batch_reference(reference.relational_kd, 1.5, 0.0),
        (5, 8),
        (5, 3),
    ),
    "rkd_wide": (
        RelationalKD(0.5, 3.0),
        batch_reference(reference.relational_kd, 0.5, 3.0),
        (5, 10, 10, 4),
        (5, 300),
    ),
}
each_case = pytest.mark.parametrize("case", CASES)
LOSSES = [AttentionTransfer(), SimilarityPreserving(), RelationalKD()]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda o: o.name)


@each_case
def test_values_of_the_samples(case):
    loss, expected, teacher_shape, student_shape = CASES[case]
    teacher, student = feature(0, *teacher_shape), feature(1, *student_shape)
    values = to_numpy(loss.call(teacher, student))
    assert values.shape == (5,)
    np.testing.assert_allclose(values, expected(teacher, student), rtol=1e-5)


@each_case
def test_gradient(case):
    loss, expected, teacher_shape, student_shape = CASES[case]
    teacher, student = feature(0, *teacher_shape), feature(1, *student_shape)
    _, actual = value_and_gradient(lambda s: loss(teacher, s), student)
    if student.size > 100:  # A few of the many elements.
        student, actual = student[:, :4], actual[:, :4]
        rest = feature(1, *student_shape)[:, 4:]
        whole = lambda s: np.concatenate([s, rest], axis=1)  # noqa: E731
    else:
        whole = lambda s: s  # noqa: E731
    slopes = reference.numerical_gradient(
        lambda s: np.mean(expected(teacher, whole(s))), student
    )
    scale = np.max(np.abs(slopes))
    np.testing.assert_allclose(actual, slopes, rtol=1e-4, atol=1e-5 * scale)


@each_loss
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e18])
def test_losses_do_not_depend_on_the_scale(loss, scale):
    teacher, student = feature(0, 4, 5, 6), feature(1, 4, 5, 3)
    expected = to_numpy(loss.call(teacher, student))
    for t, s in ((scale * teacher, student), (teacher, scale * student)):
        actual = to_numpy(loss.call(t.astype("float32"), s.astype("float32")))
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


@each_loss
def test_a_scaled_copy_has_no_loss(loss):
    teacher = feature(0, 4, 5, 6)
    value, gradient = value_and_gradient(
        lambda s: loss(teacher, s), 3.0 * teacher
    )
    assert abs(value) < 1e-10
    assert np.all(np.abs(gradient) < 1e-5)


def test_attention_does_not_depend_on_order_and_sign_of_channels():
    teacher, student = feature(0, 4, 5, 6), feature(1, 4, 5, 3)
    np.testing.assert_allclose(
        to_numpy(AttentionTransfer().call(teacher, -student[..., [2, 0, 1]])),
        to_numpy(AttentionTransfer().call(teacher, student)),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "loss", [SimilarityPreserving(), RelationalKD()], ids=lambda o: o.name
)
def test_relations_do_not_depend_on_a_rotation(loss):
    teacher, student = feature(0, 4, 6), feature(1, 4, 5)
    rotation, _ = np.linalg.qr(feature(2, 5, 5))
    np.testing.assert_allclose(
        to_numpy(loss.call(teacher, student @ rotation)),
        to_numpy(loss.call(teacher, student)),
        rtol=1e-4,
    )


def test_distances_and_angles_do_not_depend_on_a_shift():
    teacher, student = feature(0, 4, 6), feature(1, 4, 5)
    np.testing.assert_allclose(
        to_numpy(RelationalKD().call(teacher + 16.0, student - 8.0)),
        to_numpy(RelationalKD().call(teacher, student)),
        rtol=1e-4,
    )


@each_loss
def test_samples_of_weight_0_are_left_out_of_the_relations(loss):
    teacher, student = feature(0, 6, 5, 6), feature(1, 6, 5, 3)
    keep = np.array([0, 2, 3, 5])
    weights = np.zeros(6, "float32")
    weights[keep] = [1, 0.5, 2, 1]
    expected = to_numpy(loss.call(teacher[keep], student[keep]))
    # Padding may contain any values, including NaN.
    teacher[1], student[4] = np.nan, np.inf
    for given in (weights, weights[:, None], weights > 0):
        values, gradient = value_and_gradient(
            lambda s, g=given: keras.ops.sum(loss.call(teacher, s, g)), student
        )
        np.testing.assert_allclose(values, expected.sum(), rtol=1e-5)
        assert not np.any(gradient[[1, 4]])
        assert np.all(np.isfinite(gradient))
    values = to_numpy(loss.call(teacher, student, weights))
    np.testing.assert_allclose(values[keep], expected, rtol=1e-5)
    assert not np.any(values[[1, 4]])
    np.testing.assert_allclose(
        float(loss(teacher, student, sample_weight=weights)),
        np.sum(expected * weights[keep]) / 6,
        rtol=1e-5,
    )


@each_loss
@pytest.mark.parametrize("shape", [(7,), (3, 3)])
def test_places_of_weight_0_are_left_out_of_the_features(loss, shape):
    teacher, student = feature(0, 4, *shape, 6), feature(1, 4, *shape, 3)
    mask = np.ones((4, *shape), "float32")
    mask[:, -1], mask[:, 0] = 0, 0
    values = to_numpy(loss.call(teacher, student, mask))
    inner = (slice(None), slice(1, -1))
    np.testing.assert_allclose(
        values, to_numpy(loss.call(teacher[inner], student[inner])), rtol=1e-5
    )
    teacher[:, 0], student[:, -1] = np.nan, 1e30
    np.testing.assert_array_equal(
        to_numpy(loss.call(teacher, student, mask)), values
    )


@pytest.mark.parametrize("loss", LOSSES[1:], ids=lambda o: o.name)
def test_weights_follow_the_places_of_each_feature(loss):
    """Twice the resolution, a sequence of patches, and a pooled teacher."""
    student, mask = feature(1, 4, 2, 2, 3), np.ones((4, 2, 2), "float32")
    mask[:, 1] = 0
    fine = feature(0, 4, 4, 4, 6)
    zeroed = fine * np.array([1, 1, 0, 0], "float32")[:, None, None]
    halved = student * mask[..., None]
    for teacher, expected in (
        (fine, zeroed),
        (fine.reshape(4, 4, 24), None),
        (fine[:, 0, 0], fine[:, 0, 0]),
    ):
        if expected is None:
            expected = teacher * mask.reshape(4, 4, 1)
        np.testing.assert_allclose(
            to_numpy(loss.call(teacher, student, mask)),
            to_numpy(loss.call(expected, halved)),
            rtol=1e-5,
        )
    message = r"must have the places of the feature.*\(2, 2\).*\(7,\)"
    with pytest.raises(ValueError, match=message):
        loss.call(feature(0, 4, 7, 6), student, mask)


@each_loss
@pytest.mark.parametrize("teacher", ["zero", "constant", "normal"])
@pytest.mark.parametrize(
    "student", ["zero", "constant", "equal", "tiny", "huge", "one", "none"]
)
def test_degenerate_features_are_finite(loss, teacher, student):
    kinds = {
        "zero": np.zeros((4, 3, 5)),
        "constant": np.ones((4, 3, 5)),
        "normal": feature(0, 4, 3, 5),
        "equal": np.repeat(feature(0, 1, 3, 5), 4, axis=0),
        "tiny": 1e-30 * feature(0, 4, 3, 5),
        "huge": 1e30 * feature(0, 4, 3, 5),
        "one": feature(0, 1, 3, 5),
        "none": feature(0, 4, 3, 5),
    }
    weights = np.zeros(4, "float32") if student == "none" else None
    student = kinds[student].astype("float32")
    teacher = kinds[teacher][: len(student)].astype("float32")
    value, gradient = value_and_gradient(
        lambda s: loss(teacher, s, weights), student
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_one_sample_has_no_relations():
    teacher, student = feature(0, 1, 6), feature(1, 1, 3)
    for loss in (SimilarityPreserving(), RelationalKD()):
        assert abs(float(loss(teacher, student))) < 1e-12


@each_loss
def test_half_precision_is_computed_in_float32(loss):
    teacher, student = feature(0, 4, 3, 5), 300 * feature(1, 4, 3, 5)
    half = keras.ops.cast(student, "float16")
    value = loss.call(keras.ops.cast(teacher, "float16"), half)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(
        to_numpy(value), to_numpy(loss.call(teacher, student)), rtol=0.02
    )


@each_loss
def test_round_trip(loss):
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert type(restored) is type(loss)
    assert restored.get_config() == loss.get_config()
    other = type(loss).from_config({**loss.get_config(), "reduction": "none"})
    assert other(feature(0, 4, 3, 5), feature(1, 4, 3, 5)).shape == (4,)


@each_loss
def test_relational_attributes(loss):
    assert loss.relational
    assert loss.same_places == isinstance(loss, AttentionTransfer)


@pytest.mark.parametrize("p", [0.5, 0, -1, float("nan"), float("inf"), "2"])
def test_power_out_of_range(p):
    with pytest.raises(ValueError, match="`p` must be a finite number of at"):
        AttentionTransfer(p=p)


def test_weights_out_of_range():
    with pytest.raises(ValueError, match="`angle_weight` must be a finite"):
        RelationalKD(1.0, -1.0)
    with pytest.raises(ValueError, match="At least one weight"):
        RelationalKD(0, 0)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((4, 5), (4, 5), "requires features with places"),
        ((4, 5, 2), (4, 6, 2), "of the same height and width"),
        ((4, 3, 3, 2), (4, 9, 2), "of the same height and width"),
    ],
)
def test_attention_requires_the_same_places(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        AttentionTransfer()(feature(0, *teacher), feature(1, *student))
