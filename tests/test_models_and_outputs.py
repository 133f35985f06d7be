"""Teachers and students of every make, and outputs of every structure."""

import keras
import numpy as np
import pytest
from common import CLASSES
from common import Recorder
from common import cnn
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence


def fit(distiller, *data, epochs=1, **kwargs):
    history = distiller.fit(*data, verbose=0, epochs=epochs, **kwargs).history
    assert all(np.all(np.isfinite(values)) for values in history.values())
    return history


def evaluate(distiller, *data):
    return distiller.evaluate(*data, verbose=0, return_dict=True)


@keras.saving.register_keras_serializable(package="test")
class Subclassed(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, "relu")
        self.drop = layers.Dropout(0.2)
        self.top = layers.Dense(CLASSES)

    def call(self, x, training=None):
        return self.top(self.drop(self.hidden(x), training=training))

    def get_config(self):
        return {"units": self.units, "name": self.name}


def test_subclassed_models():
    x, y = vectors()
    teacher = Subclassed(16)
    teacher(x)
    distiller = Distiller(student=Subclassed(), teacher=teacher)
    distiller.compile("adam", ClassicKD(), metrics=["accuracy"])
    fit(distiller, x, y, validation_data=(x, y))
    assert distiller.student.built


def test_nested_models():
    x, y = vectors()
    inputs = keras.Input((6,))
    student = keras.Model(
        inputs, mlp()(keras.Sequential([layers.Dense(6)])(inputs))
    )
    distiller = Distiller(student=student, teacher=mlp(16))
    distiller.compile("adam", ClassicKD())
    fit(distiller, x, y)


def test_students_without_an_input_are_built_on_the_view():
    x, y = images(8, 12, 3)
    student = keras.Sequential([layers.Flatten(), layers.Dense(CLASSES)])
    augment = ConsistentAugment([InceptionCrop(8, 8)])
    distiller = Distiller(
        student=student, teacher=cnn(4, 8, 3), augment=augment
    )
    distiller.compile("adam", ClassicKD(), metrics=["accuracy"])
    fit(distiller, x, y)
    assert student.layers[1].kernel.shape == (8 * 8 * 3, CLASSES)


def test_views_of_another_size_than_the_data():
    x, y = images(8, 12, 3)
    augment = ConsistentAugment([InceptionCrop(8, 8)])
    distiller = Distiller(
        student=cnn(2, 8, 3), teacher=cnn(4, 8, 3), augment=augment
    )
    distiller.compile("adam", ClassicKD(), metrics=["accuracy"])
    fit(distiller, x, y, validation_data=(x[:, :8, :8], y))


@pytest.mark.parametrize("from_logits", [True, False])
def test_ensembles_average_probabilities(from_logits):
    x, _ = vectors()
    activation = None if from_logits else "softmax"
    teachers = [mlp(16, activation=activation) for _ in range(3)]
    student = mlp(activation=activation)
    distiller = Distiller(student=student, teacher=teachers)
    distiller.compile("sgd", FunctionMatching(from_logits=from_logits))
    loss = evaluate(distiller, x)["loss"]

    def probabilities(model):
        answer = model.predict(x, verbose=0)
        return to_numpy(keras.ops.softmax(answer)) if from_logits else answer

    p = np.mean([probabilities(t) for t in teachers], axis=0)
    q = probabilities(student)
    expected = np.mean(np.sum(p * np.log(p / q), axis=-1))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert distiller.teacher is teachers


def test_callable_teacher():
    x, _ = vectors()
    matrix = np.ones((6, CLASSES), "float32")
    teacher = Recorder(lambda inputs: keras.ops.matmul(inputs, matrix))
    distiller = Distiller(student=mlp(), teacher=teacher)
    distiller.compile("adam")
    fit(distiller, x)
    assert teacher.calls


def test_resolution_of_its_own():
    x, _ = images(8, 24, 3)
    crop = InceptionCrop(8, 8, teacher_size=16)
    flip = layers.RandomFlip("horizontal")
    distiller = Distiller(
        student=cnn(2, 8, 3),
        teacher=cnn(4, 16, 3),
        augment=ConsistentAugment([crop, flip, MixUp()]),
        student_preprocessing=layers.Resizing(8, 8),
        teacher_preprocessing=layers.Resizing(16, 16),
    )
    distiller.compile("adam", metrics=[TeacherAgreement()])
    fit(distiller, x, validation_data=(x,))


def test_normalisation_of_its_own():
    x, _ = images(8, 8, dtype="uint8")
    student, teacher = cnn(2), cnn(4)
    distiller = Distiller(
        student=student,
        teacher=teacher,
        student_preprocessing=layers.Rescaling(1 / 255),
        teacher_preprocessing=lambda view: (
            keras.ops.cast(view, "float32") / 127.5 - 1
        ),
    )
    distiller.compile("adam", metrics=[TeacherDivergence()])
    expected = FunctionMatching()(
        teacher.predict(x / 127.5 - 1, verbose=0),
        student.predict(x / 255.0, verbose=0),
    )
    logs = evaluate(distiller, x)
    np.testing.assert_allclose(logs["loss"], float(expected), rtol=1e-3)
    np.testing.assert_allclose(
        logs["teacher_divergence"], float(expected), rtol=1e-3
    )
    fit(distiller, x)


def test_input_sets_of_their_own():
    """A teacher that hears and sees, a student that only sees."""
    x, _ = vectors()
    both = {"seen": x, "heard": x[:, :3]}
    seen, heard = (
        keras.Input((6,), name="seen"),
        keras.Input((3,), name="heard"),
    )
    joined = layers.Concatenate()([seen, heard])
    teacher = keras.Model(
        {"seen": seen, "heard": heard}, mlp(16, inputs=9)(joined)
    )
    distiller = Distiller(
        student=mlp(),
        teacher=teacher,
        student_preprocessing=lambda view: view["seen"],
    )
    distiller.compile("adam")
    fit(distiller, both)
    assert distiller.predict(both, verbose=0).shape == (32, CLASSES)


def two_heads(units, kind, softmax=False):
    inputs = keras.Input((6,))
    hidden = layers.Dense(units, "relu")(inputs)
    animal = layers.Dense(CLASSES, name="animal")(hidden)
    weight = layers.Dense(1, name="weight")(hidden)
    outputs = {
        "list": [animal, weight],
        "tuple": (animal, weight),
        "dict": {"animal": animal, "weight": weight},
    }
    return keras.Model(inputs, outputs[kind])


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("by", ["list", "dict"])
def test_several_heads_with_their_own_losses(kind, by):
    x, y = vectors()
    labels = {"animal": y, "weight": x[:, :1]}
    losses = {"animal": ClassicKD(), "weight": "mse"}
    if by == "list":
        losses = [losses["animal"], losses["weight"]]
    if kind == "list":
        labels = [labels["animal"], labels["weight"]]
    distiller = Distiller(
        student=two_heads(4, kind), teacher=two_heads(16, kind)
    )
    distiller.compile(
        "adam",
        losses,
        loss_weights=[1.0, 0.5]
        if by == "list"
        else {"animal": 1.0, "weight": 0.5},
        metrics={"animal": ["accuracy", TeacherAgreement()]},
    )
    logs = fit(distiller, x, labels)
    assert {
        "loss",
        "animal_soft_loss",
        "animal_label_loss",
        "weight_loss",
        "animal_accuracy",
        "animal_teacher_agreement",
    } == set(logs)
    logs = evaluate(distiller, x, labels)
    total = 0.9 * logs["animal_soft_loss"] + 0.1 * logs["animal_label_loss"]
    np.testing.assert_allclose(
        logs["loss"], total + 0.5 * logs["weight_loss"], rtol=1e-5
    )


def test_one_loss_for_all_heads():
    x, _ = vectors()

    def heads(units):
        inputs = keras.Input((6,))
        hidden = layers.Dense(units)(inputs)
        return keras.Model(
            inputs, [layers.Dense(3)(hidden), layers.Dense(4)(hidden)]
        )

    student, teacher = heads(4), heads(16)
    distiller = Distiller(student=student, teacher=[teacher, teacher])
    distiller.compile("adam", FunctionMatching(2.0))
    answers = zip(teacher.predict(x, verbose=0), student.predict(x, verbose=0))
    expected = sum(float(FunctionMatching(2.0)(t, s)) for t, s in answers)
    np.testing.assert_allclose(
        evaluate(distiller, x)["loss"], expected, rtol=1e-4
    )
    fit(distiller, x)


def test_heads_under_mixup():
    x, y = images(8, 8)

    def heads(width):
        inputs = keras.Input((8, 8, 1))
        pooled = layers.GlobalAveragePooling2D()(
            layers.Conv2D(width, 3)(inputs)
        )
        return keras.Model(
            inputs,
            {"a": layers.Dense(CLASSES)(pooled), "b": layers.Dense(3)(pooled)},
        )

    augment = ConsistentAugment([MixUp()])
    distiller = Distiller(student=heads(2), teacher=heads(8), augment=augment)
    distiller.compile(
        "adam", ClassicKD(), metrics={"a": "accuracy", "b": "accuracy"}
    )
    labels = {"a": y, "b": y % 3}
    logs = fit(distiller, x, labels, validation_data=(x, labels))
    # No class is right for a mixed image: label metrics are for validation.
    assert "a_accuracy" not in logs and "val_a_accuracy" in logs


def test_regularisers_and_batch_normalisation_count():
    x, y = images()
    penalty = keras.regularizers.L2(0.1)
    student = keras.Sequential(
        [cnn(2), layers.Dense(CLASSES, kernel_regularizer=penalty)]
    )
    moving = [v for v in student.variables if "moving" in v.path]
    before = [np.array(to_numpy(v.value)) for v in moving]
    distiller = Distiller(student=student, teacher=cnn(4))
    distiller.compile("adam", ClassicKD())
    logs = fit(distiller, x, y)
    parts = 0.9 * logs["soft_loss"][0] + 0.1 * logs["label_loss"][0]
    assert logs["loss"][0] > parts + 1e-3
    assert all(
        not np.allclose(b, to_numpy(v.value)) for b, v in zip(before, moving)
    )


def test_mixed_labels_of_another_structure_than_the_outputs():
    x, y = images(8, 8)
    augment = ConsistentAugment([MixUp()])
    distiller = Distiller(student=cnn(2), teacher=cnn(4), augment=augment)
    distiller.compile("adam", ClassicKD())
    with pytest.raises(ValueError, match="the data has several labels"):
        distiller.fit(x, {"a": y, "b": y}, verbose=0)
