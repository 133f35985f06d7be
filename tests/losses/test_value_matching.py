"""ValueMatching: distances by name, object and function; shapes; errors."""

import functools

import keras
import numpy as np
import pytest
from common import to_numpy
from common import value_and_gradient
from reference import losses as reference

from keras_distill import ValueMatching

GENERATOR = np.random.default_rng(0)
LABELS, TEACHER, STUDENT = GENERATOR.normal(size=(3, 4, 3)).astype("float32")
Y_TRUE = {"labels": LABELS, "teacher": TEACHER}


def mean_absolute_distance(target, outputs):
    return keras.ops.mean(keras.ops.abs(target - outputs), axis=-1)


def absolute_distances(target, outputs):
    return keras.ops.abs(target - outputs)


def absolute_distance_of_the_batch(target, outputs):
    return keras.ops.mean(keras.ops.abs(target - outputs))


SAME_DISTANCE = {
    "mse": ["mean_squared_error", keras.losses.MeanSquaredError()],
    "mae": [
        keras.losses.MeanAbsoluteError(),
        keras.losses.mean_absolute_error,
        mean_absolute_distance,
        absolute_distances,
        absolute_distance_of_the_batch,
    ],
    "huber": [
        keras.losses.Huber(),
        functools.partial(keras.losses.huber, delta=1.0),
    ],
}


@pytest.mark.parametrize("name", SAME_DISTANCE)
def test_names_objects_and_functions_mean_the_same(name):
    expected = float(ValueMatching(name, 0.3)(Y_TRUE, STUDENT))
    for distance in SAME_DISTANCE[name]:
        actual = float(ValueMatching(distance, 0.3)(Y_TRUE, STUDENT))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        loss = ValueMatching(name, 0.3, label_loss=distance)
        np.testing.assert_allclose(
            float(loss(Y_TRUE, STUDENT)), expected, rtol=1e-6
        )


def test_another_loss_for_the_labels():
    loss = ValueMatching("mse", 0.3, label_loss="mae")
    expected = [
        0.3 * reference.distance("mse", t, s)[0]
        + 0.7 * reference.distance("mae", y, s)[0]
        for y, t, s in zip(LABELS, TEACHER, STUDENT)
    ]
    np.testing.assert_allclose(
        float(loss(Y_TRUE, STUDENT)), np.mean(expected), rtol=1e-5
    )


def test_logits_can_be_matched_with_class_indices_as_labels():
    """Logits as values, as in Ba and Caruana 2014."""
    labels = np.array([0, 2, 1, 1])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = ValueMatching("mse", 0.3, label_loss=cross_entropy)
    expected = 0.3 * np.mean((TEACHER - STUDENT) ** 2) + 0.7 * np.mean(
        [-reference.log_softmax(s)[y] for y, s in zip(labels, STUDENT)]
    )
    for given in (labels, labels[:, None]):
        actual = loss({"labels": given, "teacher": TEACHER}, STUDENT)
        np.testing.assert_allclose(float(actual), expected, rtol=1e-5)


@pytest.mark.parametrize("distance", ["mse", "mae", "huber"])
def test_every_shape_of_one_value_means_the_same(distance):
    loss = ValueMatching(distance, 0.3, reduction="none")
    labels, teacher, student = (
        values[:, 0] for values in (LABELS, TEACHER, STUDENT)
    )
    expected = [
        0.3 * reference.distance(distance, [t], [s])[0]
        + 0.7 * reference.distance(distance, [y], [s])[0]
        for y, t, s in zip(labels, teacher, student)
    ]
    for y in (labels, labels[:, None]):
        for t in (teacher, teacher[:, None]):
            for s in (student, student[:, None]):
                actual = to_numpy(loss({"labels": y, "teacher": t}, s))
                assert actual.shape == (4,)
                np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("distance", ["mse", "cosine", keras.losses.Huber()])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (3,), (4, 3, 1), (4, 2)])
def test_labels_that_would_broadcast_are_refused(distance, shape):
    labels = np.zeros(shape, "float32")
    message = r"labels of shape .*, outputs of shape \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        loss = ValueMatching(distance, 0.5)
        loss({"labels": labels, "teacher": TEACHER}, STUDENT)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 1)])
def test_a_teacher_that_would_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have the same (shape|rank)"):
        ValueMatching()(np.zeros(shape, "float32"), STUDENT)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize(
    "distance", ["cosine", "cosine_similarity", keras.losses.CosineSimilarity()]
)
def test_the_cosine_of_a_single_value_is_refused(distance, shape):
    message = "requires outputs of more than one value.*'mse'"
    values = np.ones(shape, "float32")
    with pytest.raises(ValueError, match=message):
        ValueMatching(distance)(values, values)
    with pytest.raises(ValueError, match=message):
        loss = ValueMatching("mse", 0.0, label_loss=distance)
        loss({"labels": values, "teacher": values}, values)


def test_cosine():
    loss = ValueMatching("cosine", reduction="none")
    x = np.array([[1e30, 0.0], [1e-9, 0.0], [1.0, 1.0], [0.0, 0.0]], "float32")
    np.testing.assert_allclose(to_numpy(loss(x, 7 * x)), 0, atol=1e-7)
    np.testing.assert_allclose(to_numpy(loss(x, -x)), [2, 2, 2, 0], rtol=1e-6)


@pytest.mark.parametrize(("teacher", "student"), [(0.0, 1.0), (1.0, 0.0)])
def test_cosine_with_a_vector_of_zeros(teacher, student):
    teacher, student = (
        np.full((1, 2), v, "float32") for v in (teacher, student)
    )
    value, gradient = value_and_gradient(
        lambda s: ValueMatching("cosine")(teacher, s), student
    )
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    assert np.all(np.abs(gradient) < 1)


@pytest.mark.parametrize(
    "loss",
    [
        "binary_crossentropy",
        "sparse_categorical_crossentropy",
        keras.losses.categorical_crossentropy,
        functools.partial(keras.losses.binary_crossentropy, label_smoothing=0),
    ],
)
def test_a_cross_entropy_requires_from_logits(loss):
    message = "requires `from_logits`, because it takes logits or prob"
    with pytest.raises(ValueError, match="`distance` " + message):
        ValueMatching(loss)
    with pytest.raises(ValueError, match="`label_loss` " + message):
        ValueMatching(label_loss=loss)


def test_losses_for_class_indices_are_refused():
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="`distance` must compare values"):
        ValueMatching(sparse)
    with pytest.raises(ValueError, match="`distance` must be a loss"):
        ValueMatching(None)
    with pytest.raises(ValueError, match=r"Received: labels of shape \(4, 2\)"):
        loss = ValueMatching(alpha=0.5, label_loss=sparse)
        loss({"labels": np.zeros((4, 2)), "teacher": TEACHER}, STUDENT)


def test_labels_of_a_custom_function_are_not_checked():
    def first_value(labels, outputs):
        return keras.ops.abs(labels - outputs[:, 0])

    loss = ValueMatching(alpha=0.0, label_loss=first_value)
    labels = np.zeros(4, "float32")
    np.testing.assert_allclose(
        float(loss({"labels": labels, "teacher": TEACHER}, STUDENT)),
        np.mean(np.abs(STUDENT[:, 0])),
        rtol=1e-6,
    )


def test_missing_labels():
    with pytest.raises(ValueError, match=r"the data has none.*`alpha=1`"):
        ValueMatching(alpha=0.9)({"teacher": TEACHER}, STUDENT)
    assert np.isfinite(float(ValueMatching()(TEACHER, STUDENT)))


def test_no_temperature_and_no_logits_in_its_config():
    config = ValueMatching("huber", 0.5, label_loss="mae").get_config()
    assert not {"temperature", "from_logits"} & set(config)
    with pytest.raises(TypeError):
        ValueMatching(temperature=2.0)


@pytest.mark.parametrize("distance", ["cosine", keras.losses.Huber(delta=0.1)])
def test_round_trip(distance):
    """Also `Huber`, whose config in Keras does not contain delta."""
    loss = ValueMatching(distance, 0.5, label_loss=keras.losses.LogCosh())
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert restored.get_config() == loss.get_config()
    assert float(restored(Y_TRUE, STUDENT)) == float(loss(Y_TRUE, STUDENT))
