"""Numbers that change during one `fit()`: exact at every step, and resumed."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import mlp
from common import same_weights
from common import vectors
from common import weights_of

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint

pytestmark = pytest.mark.any_backend

STEPS = 8  # of 4 samples, in two epochs


def pair():
    keras.utils.set_random_seed(7)
    return mlp(4, name="student"), mlp(16, name="teacher")


def decay(start, end, steps=STEPS):
    return keras.optimizers.schedules.PolynomialDecay(start, steps, end)


@keras.saving.register_keras_serializable(package="test_schedules")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, slope):
        self.slope = slope

    def __call__(self, step):
        return 0.1 + self.slope * keras.ops.cast(step, "float32")

    def get_config(self):
        return {"slope": self.slope}


def trained(
    loss_of_step, hint_weight=None, optimizer=None, **compile_arguments
):
    """Train with a new loss at every step, without schedules.

    Eagerly on TensorFlow, which would compile each loss for one step.
    """
    student, teacher = pair()
    x, y = vectors(16)
    optimizer = optimizer or keras.optimizers.SGD(0.5)
    for step in range(STEPS):
        hints = []
        if hint_weight is not None:
            hints = [Hint("dense", "dense", weight=hint_weight(step))]
        distiller = Distiller(student=student, teacher=teacher, hints=hints)
        distiller.compile(
            optimizer,
            loss_of_step(step),
            run_eagerly=BACKEND == "tensorflow",
            **compile_arguments,
        )
        rows = slice(4 * (step % 4), 4 * (step % 4) + 4)
        distiller.train_on_batch(x[rows], y[rows])
    return student


def scheduled(loss, hints=(), optimizer=None, epochs=2, **compile_arguments):
    student, teacher = pair()
    x, y = vectors(16)
    distiller = Distiller(student=student, teacher=teacher, hints=hints)
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.5), loss, **compile_arguments
    )
    history = distiller.fit(
        x,
        y,
        batch_size=4,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        validation_data=(x, y),
    )
    return student, distiller, history.history


def at(schedule, step):
    return float(keras.ops.convert_to_numpy(schedule(step)))


# PyTorch runs one step at a time.
@pytest.mark.every_backend
@pytest.mark.parametrize("together", [1] if BACKEND == "torch" else [1, 4])
def test_alpha_and_temperature_follow_the_step(together):
    alpha, temperature = decay(0.9, 0.1), Ramp(0.7)
    expected = trained(
        lambda step: ClassicKD(at(alpha, step), at(temperature, step))
    )
    student, _, _ = scheduled(
        ClassicKD(alpha, temperature), steps_per_execution=together
    )
    assert same_weights(weights_of(student), weights_of(expected), 1e-6)


def test_the_weights_of_a_sum_and_of_outputs_follow_the_step():
    first, second = decay(1.0, 0.2), Ramp(0.3)
    expected = trained(
        lambda step: (
            at(second, step) * FunctionMatching(2.0)
            + at(first, step) * at(second, step) * DIST(label_weight=0.0)
        )
    )
    student, _, _ = scheduled(
        FunctionMatching(2.0) + first * DIST(label_weight=0.0),
        loss_weights=second,
    )
    assert same_weights(weights_of(student), weights_of(expected), 1e-6)


def test_the_weight_of_a_hint_follows_the_step():
    def same_width():
        keras.utils.set_random_seed(7)
        return mlp(4), mlp(4)

    weight = Ramp(1.5)
    x, y = vectors(16)
    students = []
    for by_hand in (True, False):
        student, teacher = same_width()
        optimizer = keras.optimizers.SGD(0.5)
        for step in range(4) if by_hand else [None]:
            value = at(weight, step) if by_hand else weight
            name = next(layer.name for layer in student.layers)
            teacher_name = next(layer.name for layer in teacher.layers)
            distiller = Distiller(
                student=student,
                teacher=teacher,
                hints=[Hint(teacher_name, name, weight=value)],
            )
            distiller.compile(
                optimizer,
                FunctionMatching(),
                run_eagerly=by_hand and BACKEND == "tensorflow",
            )
            if by_hand:
                rows = slice(4 * step, 4 * step + 4)
                distiller.train_on_batch(x[rows], y[rows])
            else:
                distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        students.append(student)
    assert same_weights(*map(weights_of, students), 1e-6)


def test_a_function_of_the_step():
    expected = trained(lambda step: ClassicKD(0.5, 1.0 + step))
    student, _, _ = scheduled(ClassicKD(0.5, lambda step: 1.0 + step))
    assert same_weights(weights_of(student), weights_of(expected), 1e-6)


def test_the_current_value_is_logged():
    alpha, temperature = decay(0.9, 0.1), Ramp(0.7)
    _, distiller, history = scheduled(
        ClassicKD(alpha, temperature), log_schedules=True
    )
    # The last step of each epoch, and the state that validation begins with.
    np.testing.assert_allclose(
        history["alpha"], [at(alpha, 3), at(alpha, 7)], rtol=1e-6
    )
    np.testing.assert_allclose(
        history["temperature"], [at(temperature, 3), at(temperature, 7)]
    )
    np.testing.assert_allclose(
        history["val_alpha"], [at(alpha, 4), at(alpha, 8)], rtol=1e-6
    )
    x, y = vectors(16)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    expected = ClassicKD(at(alpha, 8), at(temperature, 8))
    distiller.compile(distiller.optimizer, expected)
    again = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert abs(logs["loss"] - again["loss"]) < 1e-6
    assert "alpha" not in again


def test_a_resumed_run_continues_the_schedule(tmp_path):
    def run(epochs):
        student, teacher = pair()
        x, y = vectors(16)
        distiller = Distiller(student=student, teacher=teacher)
        distiller.compile(
            keras.optimizers.Adam(0.01), ClassicKD(decay(0.9, 0.1), Ramp(0.5))
        )
        distiller.fit(
            x,
            y,
            batch_size=4,
            shuffle=False,
            epochs=epochs,
            verbose=0,
            callbacks=[
                keras.callbacks.BackupAndRestore(
                    tmp_path / "run", delete_checkpoint=False
                )
            ],
        )
        return student

    run(1)
    resumed = run(2)
    student, _, _ = scheduled(
        ClassicKD(decay(0.9, 0.1), Ramp(0.5)),
        optimizer=keras.optimizers.Adam(0.01),
    )
    assert same_weights(weights_of(resumed), weights_of(student), 1e-7)


def test_saved_and_loaded(tmp_path):
    student, distiller, _ = scheduled(
        ClassicKD(decay(0.9, 0.1), Ramp(0.5))
        + Ramp(0.2) * FunctionMatching(2.0),
    )
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    loaded.teacher = pair()[1]
    x, y = vectors(16)
    for each in (distiller, loaded):
        each.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert same_weights(weights_of(loaded.student), weights_of(student), 1e-7)


def test_gradient_accumulation_counts_updates():
    temperature = Ramp(0.7)
    student, teacher = pair()
    x, y = vectors(16)
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(
        optimizer, FunctionMatching(temperature), log_schedules=True
    )
    history = distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    expected = at(temperature, 1)  # The fourth batch makes the second update.
    assert abs(history.history["temperature"][0] - expected) < 1e-6


def test_a_variable_as_the_weight_of_a_loss_may_change():
    student, teacher = pair()
    x, _ = vectors(16)
    weight = keras.Variable(1.0)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", FunctionMatching(), loss_weights=weight)

    def loss():
        return distiller.evaluate(x, verbose=0, return_dict=True)["loss"]

    first = loss()
    weight.assign(3.0)
    assert abs(loss() - 3 * first) < 1e-5
    before = weights_of(student)
    weight.assign(0.0)
    distiller.fit(x, verbose=0)
    assert same_weights(weights_of(student), before)


def test_numbers_cannot_be_assigned():
    loss = FunctionMatching(2.0)
    with pytest.raises(
        AttributeError, match="pass a schedule to the constructor"
    ):
        loss.temperature = 3.0
    hint = Hint("a", "b")
    with pytest.raises(
        AttributeError, match="`weight` of a Hint cannot change"
    ):
        hint.weight = 2.0


def test_schedules_out_of_range_and_outside_a_distiller():
    with pytest.raises(ValueError, match=r"`alpha`.* starts with a value"):
        ClassicKD(alpha=lambda step: 2.0)
    with pytest.raises(ValueError, match="the step is unknown"):
        FunctionMatching(Ramp(0.1))(np.ones((1, 2)), np.ones((1, 2)))
