"""Losses for the labels: by name, object, function and partial."""

import functools

import keras
import numpy as np
import pytest
from common import to_numpy
from reference import losses as reference

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import DecoupledKD

GENERATOR = np.random.default_rng(0)
TEACHER, STUDENT = 3 * GENERATOR.normal(size=(2, 4, 3)).astype("float32")
INDICES = np.array([0, 2, 1, 1])
ONE_HOT = np.eye(3, dtype="float32")[INDICES]
CROSS_ENTROPIES = np.array(
    [-reference.log_softmax(s)[y] for y, s in zip(INDICES, STUDENT)]
)
KINDS = [ClassicKD, DIST, DecoupledKD]
each_kind = pytest.mark.parametrize("kind", KINDS)

SPARSE = [
    None,
    "sparse_categorical_crossentropy",
    "SparseCategoricalCrossentropy",
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    functools.partial(
        keras.losses.sparse_categorical_crossentropy, from_logits=True
    ),
    functools.partial(
        keras.losses.sparse_categorical_crossentropy, ignore_class=255
    ),
]
CATEGORICAL = [
    None,
    "categorical_crossentropy",
    "CategoricalCrossentropy",
    keras.losses.categorical_crossentropy,
    keras.losses.CategoricalCrossentropy(from_logits=True),
]


def label_part(loss, labels, student=STUDENT):
    """Return the label loss of each sample."""
    _, part = loss.parts()["label_loss"]
    return to_numpy(part({"labels": labels, "teacher": TEACHER}, student))


@each_kind
@pytest.mark.parametrize("label_loss", SPARSE)
def test_class_indices_on_logits(kind, label_loss):
    actual = label_part(kind(label_loss=label_loss), INDICES)
    np.testing.assert_allclose(actual, CROSS_ENTROPIES, rtol=1e-5)


@each_kind
@pytest.mark.parametrize("label_loss", CATEGORICAL)
def test_one_hot_labels_on_logits(kind, label_loss):
    actual = label_part(kind(label_loss=label_loss), ONE_HOT)
    np.testing.assert_allclose(actual, CROSS_ENTROPIES, rtol=1e-5)


@each_kind
@pytest.mark.parametrize(
    "label_loss",
    [
        None,
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
    ],
)
def test_class_indices_on_probabilities(kind, label_loss):
    loss = kind(label_loss=label_loss, from_logits=False)
    student = np.exp(STUDENT) / np.exp(STUDENT).sum(-1, keepdims=True)
    actual = label_part(loss, INDICES, student)
    np.testing.assert_allclose(actual, CROSS_ENTROPIES, rtol=1e-5)


@each_kind
@pytest.mark.parametrize("from_logits", [True, False])
def test_losses_that_contradict_are_refused(kind, from_logits):
    message = rf"with from_logits={not from_logits}.*`from_logits={from_logits}"
    for other in (
        keras.losses.SparseCategoricalCrossentropy(from_logits=not from_logits),
        keras.losses.CategoricalFocalCrossentropy(from_logits=not from_logits),
        functools.partial(
            keras.losses.categorical_crossentropy, from_logits=not from_logits
        ),
    ):
        with pytest.raises(ValueError, match=message):
            kind(label_loss=other, from_logits=from_logits)


@each_kind
@pytest.mark.parametrize(
    "label_loss", ["kl_divergence", keras.losses.KLDivergence(), "poisson"]
)
def test_losses_for_probabilities_are_refused_on_logits(kind, label_loss):
    with pytest.raises(ValueError, match="takes probabilities and the student"):
        kind(label_loss=label_loss)
    kind(label_loss=label_loss, from_logits=False)


@keras.saving.register_keras_serializable(package="test")
def hinge_of_places(labels, logits):
    """A custom function that returns one value per class."""
    return keras.ops.relu(1.0 - (2.0 * labels - 1.0) * logits)


@keras.saving.register_keras_serializable(package="test")
def hinge_of_the_batch(labels, logits):
    """Returns a single number, as `keras.losses.Dice`."""
    return keras.ops.mean(hinge_of_places(labels, logits))


@each_kind
@pytest.mark.parametrize("function", [hinge_of_places, hinge_of_the_batch])
def test_functions_of_any_rank(kind, function):
    loss = kind(label_loss=function, reduction="none")
    values = np.maximum(0, 1 - (2 * ONE_HOT - 1) * STUDENT)
    expected = values.mean(-1)
    if function is hinge_of_the_batch:
        expected = np.full(4, values.mean())
    actual = label_part(loss, ONE_HOT)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    y_true = {"labels": ONE_HOT, "teacher": TEACHER}
    assert loss(y_true, STUDENT).shape == (4,)
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    np.testing.assert_array_equal(
        to_numpy(restored(y_true, STUDENT)), to_numpy(loss(y_true, STUDENT))
    )


@each_kind
def test_values_per_sample_with_values_per_place(kind):
    """Four samples of two places, and one label loss per sample."""

    def of_the_sample(labels, logits):
        return keras.ops.mean(keras.ops.square(labels - logits), axis=(1, 2))

    loss = kind(label_loss=of_the_sample)
    labels, student = (
        np.stack([z, z[::-1]], axis=1) for z in (ONE_HOT, STUDENT)
    )
    soft = {"labels": labels, "teacher": student + 1.0}
    value = float(loss(soft, student))
    parts = loss.parts()
    expected = sum(
        weight * np.mean(to_numpy(part(soft, student)))
        for weight, part in parts.values()
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_row_of_zeros_has_neither_value_nor_gradient():
    from common import value_and_gradient

    labels = ONE_HOT * np.array([[1], [0], [1], [1]], "float32")
    value, gradient = value_and_gradient(
        lambda s: ClassicKD(0.0, reduction="sum")(
            {"labels": labels, "teacher": TEACHER}, s
        ),
        STUDENT,
    )
    np.testing.assert_allclose(
        value, CROSS_ENTROPIES[[0, 2, 3]].sum(), rtol=1e-5
    )
    assert not np.any(gradient[1]) and np.all(np.any(gradient[[0, 2, 3]], -1))


@each_kind
def test_huber_keeps_its_delta(kind):
    loss = kind(label_loss=keras.losses.Huber(delta=0.25))
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    np.testing.assert_array_equal(
        label_part(restored, ONE_HOT), label_part(loss, ONE_HOT)
    )


def test_class_indices_are_not_rounded_in_half_precision():
    outputs = np.zeros((1, 3000), "float32")
    outputs[0, 2049] = 9.0  # float16 would round the index to 2048
    loss = ClassicKD(alpha=0.0, dtype="float16")
    target = {"labels": np.array([2049]), "teacher": outputs}
    assert float(loss(target, outputs)) < 1.0
