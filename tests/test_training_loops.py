"""Training loops that people write around a Distiller, and Keras's options.

The options of optimizers and callbacks are Keras's own: what they do to a
student must equal, bit by bit, what they do to a plain model that is trained
towards the teacher's stored outputs. The loops (teachers that follow their
student, students that teach each other, generations) are held against the same
loop on linear models, written in NumPy with the gradient worked out by hand.
"""

import functools

import keras
import numpy as np
import pytest
from common import CLASSES
from common import mlp
from common import same_weights
from common import vectors
from common import weights_of
from keras import layers
from keras import optimizers
from reference.losses import function_matching_gradient

from keras_distill import Distiller
from keras_distill import FunctionMatching

RATE = 0.5


def linear(name=None):
    """A model of which NumPy knows the gradient."""
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(CLASSES)], name=name
    )


def logits_of(weights, x):
    kernel, bias = weights
    return x @ kernel + bias


def weights64(model):
    return [np.asarray(w, "float64") for w in model.get_weights()]


def stepped(weights, x, teacher_logits, temperature=1.0):
    """Return the weights of a linear student after one step of SGD."""
    student_logits = logits_of(weights, x)
    gradients = np.array(
        [
            function_matching_gradient(t, s, temperature)
            for t, s in zip(teacher_logits, student_logits)
        ]
    ) / len(x)
    kernel, bias = weights
    return [
        kernel - RATE * x.T @ gradients,
        bias - RATE * gradients.sum(axis=0),
    ]


def batches_of(x, size=8):
    return [x[i : i + size] for i in range(0, len(x), size)]


def distiller_of(student, teacher):
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(optimizers.SGD(RATE), FunctionMatching())
    return distiller


def assert_close(model, expected):
    for value, reference in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, reference, atol=2e-6)


# What optimizers do


OPTIONS = {
    "ema": dict(use_ema=True, ema_momentum=0.5),
    "ema that is written back": dict(
        use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    ),
    "schedule": dict(
        learning_rate=optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
    "clipnorm": dict(clipnorm=0.01),
    "global_clipnorm": dict(global_clipnorm=0.01),
    "clipvalue": dict(clipvalue=0.001),
    "accumulation": dict(gradient_accumulation_steps=3),
    "weight decay": dict(weight_decay=0.1),
}


def trained(option, distilled=True):
    """Train the same student in a Distiller, or as a plain Keras model."""
    keras.utils.set_random_seed(3)
    teacher, student = mlp(16), mlp()
    x, _ = vectors(44)
    optimizer = optimizers.SGD(**{"learning_rate": 0.1, **option})
    fit_options = dict(batch_size=8, epochs=2, shuffle=False, verbose=0)
    if distilled:
        distiller = Distiller(student=student, teacher=teacher)
        distiller.compile(optimizer, FunctionMatching(2.0))
        losses = distiller.fit(x, **fit_options).history["loss"]
    else:
        student.compile(optimizer, FunctionMatching(2.0))
        targets = teacher.predict(x, batch_size=8, verbose=0)
        losses = student.fit(x, targets, **fit_options).history["loss"]
    return losses, weights_of(student)


@functools.cache
def without_options():
    return trained({})[1]


@pytest.mark.parametrize("name", OPTIONS)
def test_optimizers_do_what_they_do_in_plain_keras(name):
    losses, weights = trained(OPTIONS[name])
    expected_losses, expected = trained(OPTIONS[name], distilled=False)
    assert losses == expected_losses
    assert same_weights(weights, expected, 0.0)
    # The option is at work: without it, training ends elsewhere.
    assert not same_weights(weights, without_options(), 1e-4)


# What callbacks do


class Spoil(keras.callbacks.Callback):
    """Keeps the weights of every epoch, and ruins training from the third."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = RATE if epoch < 2 else -5 * RATE

    def on_epoch_end(self, epoch, logs=None):
        self.kept.append([np.array(w) for w in self.model.get_weights()])


@pytest.mark.one_backend("tensorflow")
def test_a_step_is_traced_once():
    calls = []

    class Counted(layers.Layer):
        def call(self, inputs):
            calls.append(self.name)
            return inputs

    student = keras.Sequential([keras.Input((6,)), Counted(), mlp()])
    distiller = distiller_of(student, mlp(16))
    distiller.compile("adam", FunctionMatching())
    calls.clear()
    distiller.fit(vectors()[0], verbose=0)
    assert len(calls) == 1


def test_the_best_weights_are_restored():
    x, y = vectors()
    student, teacher = mlp(), mlp(16)
    taught = weights_of(teacher)
    distiller = distiller_of(student, teacher)
    spoil = Spoil()
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=2, restore_best_weights=True
    )
    history = distiller.fit(
        x,
        y,
        validation_data=(x, y),
        epochs=9,
        verbose=0,
        callbacks=[spoil, stop],
    ).history
    assert len(history["val_loss"]) == 4 and stop.best_epoch == 1
    assert same_weights(weights_of(student), spoil.kept[1])
    assert not same_weights(spoil.kept[1], spoil.kept[3], 1e-3)
    assert same_weights(weights_of(teacher), taught)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(
        logs["loss"], min(history["val_loss"]), rtol=1e-6
    )


class FollowStudent(keras.callbacks.Callback):
    """Moves the teacher a little towards its student after each step."""

    def __init__(self, momentum):
        super().__init__()
        self.momentum = momentum

    def on_train_batch_end(self, batch, logs=None):
        teacher, student = self.model.teacher, self.model.student
        teacher.set_weights(
            [
                self.momentum * t + (1 - self.momentum) * s
                for t, s in zip(teacher.get_weights(), student.get_weights())
            ]
        )


def test_a_teacher_that_is_the_average_of_its_student():
    x, _ = vectors()
    teacher, student = linear(), linear()
    averaged, weights = weights64(teacher), weights64(student)
    distiller_of(student, teacher).fit(
        x,
        batch_size=8,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[FollowStudent(0.8)],
    )
    for batch in batches_of(x) * 2:
        weights = stepped(weights, batch, logits_of(averaged, batch))
        averaged = [0.8 * a + 0.2 * w for a, w in zip(averaged, weights)]
    assert_close(student, weights)
    assert_close(teacher, averaged)


# Loops around `fit()` and `train_on_batch()`


def test_students_that_teach_each_other():
    x, _ = vectors()
    first, second = linear(), linear()
    weights = [weights64(first), weights64(second)]
    distillers = [distiller_of(first, second), distiller_of(second, first)]
    for batch in batches_of(x) * 2:
        for learner, distiller in enumerate(distillers):
            logs = distiller.train_on_batch(batch, return_dict=True)
            assert np.isfinite(logs["loss"])
            weights[learner] = stepped(
                weights[learner], batch, logits_of(weights[1 - learner], batch)
            )
    assert_close(first, weights[0])
    assert_close(second, weights[1])


@pytest.mark.parametrize("by", ["assigning", "a new Distiller"])
def test_every_generation_learns_from_the_one_before(by):
    x, _ = vectors()
    parent = linear("parent")
    expected = weights64(parent)
    distiller = None
    for _ in range(3):
        child = linear()
        weights = weights64(child)
        if by == "assigning" and distiller is not None:
            # The student stays the same object and starts from new weights.
            child = distiller.student
            parent = keras.models.clone_model(child)
            parent.set_weights(child.get_weights())
            child.set_weights(weights)
            distiller.teacher = parent
        else:
            distiller = distiller_of(child, parent)
        distiller.fit(x, batch_size=8, epochs=2, shuffle=False, verbose=0)
        for batch in batches_of(x) * 2:
            weights = stepped(weights, batch, logits_of(expected, batch))
        assert_close(child, weights)
        parent, expected = child, weights
