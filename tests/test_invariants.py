"""What must hold in every distillation, whatever is distilled."""

import keras
import numpy as np
import pytest
from common import BACKEND
from common import CLASSES
from common import Probe
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence


def views(seed=0, **kwargs):
    return ConsistentAugment(
        [InceptionCrop(8, 8, **kwargs), MixUp()], seed=seed
    )


def distiller_of(student, teacher, loss=None, **kwargs):
    distiller = Distiller(student=student, teacher=teacher, **kwargs)
    distiller.compile(
        keras.optimizers.Adam(0.01), loss=loss or FunctionMatching()
    )
    return distiller


def test_teacher_never_changes_and_student_does():
    x, y = images()
    teacher, student = cnn(4), cnn(2)
    teacher.layers[1].trainable = False
    flags = [layer.trainable for layer in teacher.layers]
    before, student_before = weights_of(teacher), weights_of(student)
    distiller_of(student, teacher, ClassicKD(), augment=views()).fit(
        x, y, epochs=2, verbose=0
    )
    assert same_weights(weights_of(teacher), before)
    assert not same_weights(weights_of(student), student_before, 1e-4)
    assert [layer.trainable for layer in teacher.layers] == flags


def test_teacher_stays_usable_during_training():
    """On JAX a model's own variables are taken away while it trains."""
    x, _ = vectors()
    teacher = mlp(16)
    answers = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: answers.append(
            teacher.predict(x[:2], verbose=0)
        )
    )
    distiller_of(mlp(), teacher).fit(x, verbose=0, callbacks=[look])
    np.testing.assert_array_equal(answers[0], teacher.predict(x[:2], verbose=0))


def test_optimizer_has_no_slots_for_the_teacher():
    x, _ = vectors()
    student = mlp()
    distiller = distiller_of(student, mlp(64))
    distiller.fit(x, verbose=0)
    slots = [v.path for v in distiller.optimizer.variables]
    # Adam: iterations, learning rate, and two slots per trainable weight.
    assert len(slots) == 2 + 2 * len(student.trainable_weights)


def test_teacher_and_student_receive_the_same_view():
    x, _ = images(8, 12)
    teacher_saw = []

    def teacher(view):
        teacher_saw.append(to_numpy(view))
        flat = keras.ops.reshape(view, (8, 64))
        return keras.ops.matmul(flat, np.ones((64, CLASSES), "float32"))

    probe = Probe((8, 8, 8, 1))
    inputs = keras.Input(batch_shape=(8, 8, 8, 1))
    flat = keras.layers.Flatten()(probe(inputs))
    student = keras.Model(inputs, keras.layers.Dense(CLASSES)(flat))
    distiller = Distiller(student=student, teacher=teacher, augment=views())
    # Eagerly, since what a compiled step saw can't be looked at.
    distiller.compile("sgd", run_eagerly=True)
    distiller.fit(x, batch_size=8, verbose=0)
    student_saw = to_numpy(probe.seen.value)
    assert student_saw.std() > 0
    np.testing.assert_array_equal(teacher_saw[-1], student_saw)


def test_evaluate_changes_no_variable_and_repeats_itself():
    x, y = images()
    distiller = distiller_of(cnn(2), cnn(4), ClassicKD(), augment=views())
    distiller.fit(x, y, verbose=0)
    before = weights_of(distiller)
    first = distiller.evaluate(x, y, verbose=0, return_dict=True)
    second = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert first == second
    assert same_weights(weights_of(distiller), before)


def test_changing_the_teachers_weights_changes_the_loss():
    """A teacher baked into the compiled step would go unnoticed."""
    x, _ = vectors()
    teacher = mlp(16)
    distiller = Distiller(student=mlp(), teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0))

    def losses():
        trained = distiller.fit(x, verbose=0).history["loss"][0]
        return trained, distiller.evaluate(x, verbose=0, return_dict=True)[
            "loss"
        ]

    before = losses()
    teacher.set_weights([3 * w for w in teacher.get_weights()])
    for old, new in zip(before, losses()):
        assert abs(new - old) > 0.1 * old


def test_assigning_another_teacher_takes_effect():
    x, _ = vectors()
    student = mlp()
    distiller = distiller_of(student, mlp(16))
    distiller.fit(x, verbose=0)
    distiller.teacher = student_twin = mlp()
    student_twin.set_weights(student.get_weights())
    assert distiller.teacher is student_twin
    loss = distiller.evaluate(x, verbose=0, return_dict=True)["loss"]
    assert abs(loss) < 1e-6


@keras.saving.register_keras_serializable(package="test")
class Counter(keras.layers.Layer):
    """Counts its calls in a variable, so that compiled steps count too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="count"
        )

    def call(self, inputs):
        self.count.assign(self.count + 1)
        return inputs


def counting(model, counter):
    return keras.Sequential([keras.Input((6,)), counter, model])


def test_one_forward_of_the_student_per_step():
    x, _ = vectors(32)
    counter = Counter()
    student = counting(mlp(), counter)
    distiller = distiller_of(student, mlp(16))
    before = float(to_numpy(counter.count.value))
    distiller.fit(x, batch_size=8, verbose=0)
    assert float(to_numpy(counter.count.value)) - before == 4


def test_one_forward_of_the_teacher_per_step():
    x, _ = vectors(32)
    answers = mlp(16)
    calls = []

    def teacher(inputs):
        calls.append(1)
        return answers(inputs)

    distiller = Distiller(student=mlp(), teacher=teacher)
    distiller.compile("sgd", run_eagerly=True)
    distiller.fit(x, batch_size=8, verbose=0)
    assert len(calls) == 4


def records_gradients(tensor):
    """Whether the backend would keep what is computed from `tensor`."""
    if BACKEND == "torch":
        import torch

        return torch.is_grad_enabled()
    if BACKEND == "jax":
        import jax

        return isinstance(tensor, jax.core.Tracer)
    from tensorflow.python.eager import record

    return record.could_possibly_record()


def test_nothing_of_the_teacher_is_kept_for_the_backward_pass():
    x, _ = vectors()
    answers = mlp(16)
    kept = []

    def teacher(inputs):
        kept.append(records_gradients(inputs))
        return answers(inputs)

    distiller = Distiller(student=mlp(), teacher=teacher)
    distiller.compile("sgd", run_eagerly=True)
    distiller.fit(x, batch_size=32, verbose=0)
    assert kept == [False]


def test_same_seed_same_run():
    x, y = images()
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        student = cnn(2)
        distiller_of(student, cnn(4), ClassicKD(), augment=views(3)).fit(
            x, y, epochs=2, verbose=0
        )
        runs.append(weights_of(student))
    assert same_weights(*runs)


def test_loss_and_val_loss_are_the_same_quantity():
    x, y = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile(keras.optimizers.SGD(0.0), ClassicKD())
    history = distiller.fit(
        x, y, validation_data=(x, y), shuffle=False, verbose=0
    ).history
    for name in ("loss", "soft_loss", "label_loss"):
        np.testing.assert_allclose(
            history[name], history[f"val_{name}"], rtol=1e-5
        )


def test_the_loss_is_the_sum_of_its_logged_parts_and_regularisers():
    x, y = vectors()
    student = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(
                CLASSES, kernel_regularizer=keras.regularizers.L2(0.1)
            ),
        ]
    )
    distiller = distiller_of(student, mlp(16), ClassicKD(0.7, 2.0))
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    penalty = 0.1 * np.sum(student.get_weights()[0] ** 2)
    np.testing.assert_allclose(
        logs["loss"],
        0.7 * logs["soft_loss"] + 0.3 * logs["label_loss"] + penalty,
        rtol=1e-5,
    )


def test_the_default_loss_teaches():
    """The peer's default ends at chance where its teacher has 88 %."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    teacher = mlp(128, 64, 10)
    teacher.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    teacher.fit(x[:1000], y[:1000], epochs=15, verbose=0)
    student = mlp(16, 64, 10)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(
        keras.optimizers.Adam(0.01),
        metrics=["accuracy", TeacherAgreement(), TeacherDivergence()],
    )
    distiller.fit(x[:1000], epochs=20, verbose=0)
    logs = distiller.evaluate(x[1000:], y[1000:], verbose=0, return_dict=True)
    labels = teacher.predict(x[1000:], verbose=0).argmax(-1)
    assert logs["accuracy"] > np.mean(labels == y[1000:]) - 0.06
    assert logs["teacher_agreement"] > 0.9


def test_predictions_and_summary_are_the_students(capsys):
    x, _ = vectors()
    student = mlp(name="little")
    distiller = distiller_of(student, mlp(16))
    np.testing.assert_array_equal(
        distiller.predict(x, verbose=0), student.predict(x, verbose=0)
    )
    distiller.summary()
    assert "little" in capsys.readouterr().out


# `torch.compile` reads gradients of tensors that have none, of Keras's own too.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.*:UserWarning")
@pytest.mark.parametrize("jit_compile", [True, False])
def test_jit_compile(jit_compile):
    if BACKEND == "torch":
        # It takes a minute to compile Keras's convolutions, and compiled views
        # have tests of their own.
        (x, y), make, view = vectors(), mlp, None
    else:
        (x, y), make, view = images(), cnn, views()
    distiller = Distiller(student=make(2), teacher=make(4), augment=view)
    distiller.compile("adam", ClassicKD(), jit_compile=jit_compile)
    history = distiller.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
