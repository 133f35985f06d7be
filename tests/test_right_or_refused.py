"""What a Distiller refuses or warns of, beyond the shapes of its input."""

import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
from common import BACKEND
from common import IS_KERAS_3_14
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers
from keras import ops

from keras_distill import BinaryKD
from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import DistillationLoss
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence
from keras_distill import ValueMatching

pytestmark = pytest.mark.any_backend


def units(count, activation=None, hidden=8):
    return mlp(hidden, classes=count, activation=activation)


def distiller_of(student, teacher, loss, **arguments):
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", loss, **arguments)
    return distiller


def evaluated(distiller, *data, **kwargs):
    return distiller.evaluate(*data, verbose=0, return_dict=True, **kwargs)


class OwnDistance(DistillationLoss):
    def call(self, y_true, y_pred):
        teacher, student = self.outputs(y_true, y_pred)
        return ops.mean(ops.square(teacher - student), axis=-1)


# What the models end in, and what the loss is for.


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("loss", [FunctionMatching, ClassicKD])
def test_a_softmax_loss_refuses_sigmoids_whatever_the_flag(loss, from_logits):
    models = units(4, "sigmoid"), units(4, "sigmoid", 16)
    with pytest.raises(ValueError, match="Use `BinaryKD`"):
        distiller_of(*models, loss(from_logits=from_logits))


@pytest.mark.parametrize("from_logits", [True, False])
def test_a_sigmoid_loss_refuses_a_softmax_whatever_the_flag(from_logits):
    models = units(4, "softmax"), units(4, "softmax", 16)
    with pytest.raises(ValueError, match="another loss for classes"):
        distiller_of(*models, BinaryKD(from_logits=from_logits))


def softmax_by_op(hidden):
    inputs = keras.Input((6,))
    x = layers.Dense(4)(layers.Dense(hidden)(inputs))
    return keras.Model(inputs, ops.softmax(x))


def softmax_in_a_lambda(hidden):
    inputs = keras.Input((6,))
    x = layers.Dense(4)(layers.Dense(hidden)(inputs))
    return keras.Model(inputs, layers.Lambda(ops.softmax)(x))


class SoftmaxSubclassed(keras.Model):
    def __init__(self, hidden):
        super().__init__()
        self.inner = units(4, "softmax", hidden)

    def call(self, inputs):
        return self.inner(inputs)


PROBABILITIES = [softmax_by_op, softmax_in_a_lambda, SoftmaxSubclassed]


@pytest.mark.parametrize("make", PROBABILITIES)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_probabilities_for_logits_are_noticed(make, role):
    x, _ = vectors()
    models = {"student": units(4), "teacher": units(4, hidden=16)}
    models[role] = make(8)
    models[role](x)
    with pytest.raises(ValueError, match="logits"):
        evaluated(distiller_of(*models.values(), FunctionMatching()), x)


def test_functions_that_return_the_other_kind():
    x, _ = vectors()
    teacher = units(4, hidden=16)
    student = units(4)
    distiller = distiller_of(
        student, lambda inputs: ops.softmax(teacher(inputs)), FunctionMatching()
    )
    with pytest.raises(ValueError, match="teacher contradict `from_logits`"):
        distiller.train_on_batch(x)
    student = units(4, "softmax")
    distiller = distiller_of(
        student, lambda x: teacher(x), FunctionMatching(from_logits=False)
    )
    with pytest.raises(ValueError, match="teacher contradict `from_logits`"):
        distiller.fit(x, verbose=0)
    distiller.compile(
        "sgd", FunctionMatching(from_logits=False), check_values=False
    )
    distiller.fit(x, verbose=0)


def test_pixels_with_the_channels_first():
    def net(width):
        inputs = keras.Input((3, 8, 8))
        x = layers.Permute((2, 3, 1))(inputs)
        x = layers.Conv2D(width, 3, padding="same")(x)
        x = layers.Permute((3, 1, 2))(x)
        last = layers.Conv2D(5, 1, data_format="channels_first")
        return keras.Model(inputs, last(x))

    with pytest.raises(ValueError, match="channels first"):
        distiller_of(net(2), net(4), FunctionMatching())


def test_a_plain_loss_that_contradicts_the_last_layer():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)

    def heads():
        return keras.Model(
            inputs, [layers.Dense(4)(hidden), layers.Dense(3)(hidden)]
        )

    teacher = units(4, hidden=16)
    student = keras.models.clone_model(heads())
    with pytest.raises(ValueError, match="from_logits=False: it takes prob"):
        distiller_of(
            student,
            teacher,
            [FunctionMatching(), "sparse_categorical_crossentropy"],
        )


# Losses that are no softmax: nothing of a softmax is asked of them.


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_unit_under_a_loss_of_ones_own(activation):
    x, _ = vectors()
    student, teacher = units(1, activation), units(1, activation, 16)
    logs = evaluated(distiller_of(student, teacher, OwnDistance()), x)
    errors = to_numpy(student(x)) - to_numpy(teacher(x))
    assert abs(logs["loss"] - (errors**2).mean()) < 1e-6


def test_several_teachers_are_averaged_as_what_they_predict():
    x, _ = vectors()
    teachers = [units(3, hidden=16), units(3, hidden=12)]
    student = units(3)
    outputs = [to_numpy(t(x)).astype("float64") for t in teachers]
    prediction = to_numpy(student(x)).astype("float64")
    mean = np.mean(outputs, axis=0)
    logs = evaluated(distiller_of(student, teachers, ValueMatching()), x)
    assert abs(logs["loss"] - ((prediction - mean) ** 2).mean()) < 1e-5

    probability = np.mean([1 / (1 + np.exp(-o)) for o in outputs], axis=0)
    expected = np.mean(
        np.logaddexp(0, -prediction) * probability
        + np.logaddexp(0, prediction) * (1 - probability)
    )
    logs = evaluated(distiller_of(student, teachers, BinaryKD(alpha=1.0)), x)
    assert abs(logs["loss"] - expected) < 1e-5

    distiller = distiller_of(student, teachers, OwnDistance())
    with pytest.raises(ValueError, match="class attribute `predicts`"):
        evaluated(distiller, x)


def test_a_loss_that_returns_one_number_is_refused():
    class Scalar(DistillationLoss):
        def call(self, y_true, y_pred):
            return ops.mean(ops.square(y_true["teacher"] - y_pred))

    x, _ = vectors()
    distiller = distiller_of(units(3), units(3, hidden=16), Scalar())
    with pytest.raises(ValueError, match="one value per sample"):
        evaluated(distiller, x)


def test_features_alone():
    def encoder(width):
        inputs = keras.Input((6,))
        x = layers.Dense(8, "relu", name="hidden")(inputs)
        return keras.Model(inputs, layers.Dense(width, "tanh")(x))

    x, _ = vectors()
    student, teacher = encoder(3), encoder(5)  # embeddings of other widths
    distiller = Distiller(
        student=student, teacher=teacher, hints=[Hint("hidden", "hidden")]
    )
    distiller.compile("sgd")
    logs = evaluated(distiller, x)
    assert set(logs) == {"loss", "hint_loss"}

    def hidden(model):
        return to_numpy(keras.Model(model.input, model.layers[1].output)(x))

    expected = np.mean((hidden(student) - hidden(teacher)) ** 2)
    assert abs(logs["loss"] - expected) < 1e-6
    head = student.layers[-1].get_weights()[0]
    with warnings.catch_warnings():
        # Keras says that the head gets no gradient.
        warnings.simplefilter("ignore")
        distiller.fit(x, verbose=0)
    assert np.array_equal(student.layers[-1].get_weights()[0], head)


@pytest.mark.parametrize("loss", [[], {}, [None]])
def test_features_alone_beside_class_outputs(loss):
    x, _ = vectors()
    student, teacher = units(4), units(4)
    hints = [Hint(teacher.layers[0].name, student.layers[0].name)]
    distiller = Distiller(student=student, teacher=teacher, hints=hints)
    distiller.compile("sgd", loss)
    assert set(evaluated(distiller, x)) == {"loss", "hint_loss"}
    distiller.compile("sgd")
    assert "soft_loss" in evaluated(distiller, x)


# Metrics


def test_teacher_metrics_follow_the_loss():
    x, _ = vectors()
    student, teacher = units(4, "softmax"), units(4, "softmax", 16)
    metrics = [TeacherDivergence(), TeacherAgreement()]
    loss = FunctionMatching(from_logits=False)
    logs = evaluated(distiller_of(student, teacher, loss, metrics=metrics), x)
    assert abs(logs["teacher_divergence"] - logs["loss"]) < 1e-6
    with pytest.raises(ValueError, match="taken from the loss"):
        distiller_of(
            student,
            teacher,
            loss,
            metrics=[TeacherDivergence(from_logits=True)],
        )

    student, teacher = units(3, "sigmoid"), units(3, "sigmoid", 16)
    loss = BinaryKD(alpha=1.0, from_logits=False)
    metrics = [TeacherDivergence(), TeacherAgreement()]
    logs = evaluated(distiller_of(student, teacher, loss, metrics=metrics), x)
    p, q = (to_numpy(m(x)).astype("float64") for m in (teacher, student))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert abs(logs["teacher_divergence"] - divergence.mean()) < 1e-5
    same = ((p > 0.5) == (q > 0.5)).mean()
    assert abs(logs["teacher_agreement"] - same) < 1e-6

    with pytest.raises(ValueError, match="the loss of this output compares"):
        distiller_of(
            units(3),
            units(3, hidden=16),
            ValueMatching(),
            metrics=[TeacherAgreement()],
        )


def two_heads(hidden):
    inputs = keras.Input((6,))
    x = layers.Dense(hidden, "relu")(inputs)
    return keras.Model(
        inputs,
        {
            "a": layers.Dense(4, name="a")(x),
            "b": layers.Dense(3, name="b")(x),
        },
    )


@pytest.mark.parametrize("metrics", ["one for all", "one each"])
def test_metrics_of_two_outputs_have_two_logs(metrics):
    x, _ = vectors()
    given = TeacherAgreement()
    if metrics == "one each":
        given = {"a": [TeacherAgreement()], "b": [TeacherAgreement()]}
    student, teacher = two_heads(4), two_heads(16)
    distiller = distiller_of(
        student, teacher, FunctionMatching(), metrics=given
    )
    logs = evaluated(distiller, x)
    p, q = to_numpy(teacher(x)), to_numpy(student(x))
    for name in ("a", "b"):
        same = p[name].argmax(-1) == q[name].argmax(-1)
        assert abs(logs[f"{name}_teacher_agreement"] - same.mean()) < 1e-6
        assert f"{name}_soft_loss" in logs
    total = logs["a_soft_loss"] + logs["b_soft_loss"]
    assert abs(logs["loss"] - total) < 1e-5


def test_one_metric_in_both_lists():
    x, _ = vectors()
    weights = np.linspace(0, 1, len(x)).astype("float32")
    distiller = distiller_of(
        units(4),
        units(4, hidden=16),
        FunctionMatching(),
        metrics=[TeacherAgreement()],
        weighted_metrics=[TeacherAgreement()],
    )
    logs = evaluated(distiller, x, sample_weight=weights)
    assert {"teacher_agreement", "weighted_teacher_agreement"} <= set(logs)


def test_callbacks_know_which_way_is_better(tmp_path):
    x, y = vectors()
    distiller = distiller_of(
        units(4),
        units(4, hidden=16),
        ClassicKD(),
        metrics=[TeacherAgreement(), TeacherDivergence()],
    )
    y = np.minimum(y, 3)
    callbacks = [
        keras.callbacks.EarlyStopping("val_teacher_agreement"),
        keras.callbacks.EarlyStopping("val_soft_loss"),
        keras.callbacks.EarlyStopping("val_teacher_divergence"),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.weights.h5",
            monitor="val_teacher_agreement",
            save_best_only=True,
            save_weights_only=True,
        ),
    ]
    distiller.fit(x, y, validation_data=(x, y), callbacks=callbacks, verbose=0)
    assert [c.mode for c in callbacks] == ["max", "min", "min", "max"]


# Structures of outputs


class Deit(keras.Model):
    """Two heads in training, their mean in inference."""

    def __init__(self):
        super().__init__()
        self.body = layers.Dense(8, "relu")
        self.cls, self.dist = layers.Dense(4), layers.Dense(4)

    def call(self, inputs, training=None):
        x = self.body(inputs)
        cls, dist = self.cls(x), self.dist(x)
        if training:
            return {"cls": cls, "dist": dist}
        return (cls + dist) / 2


def deit(hidden=8):
    inputs = keras.Input((6,))
    x = layers.Dense(hidden, "relu")(inputs)
    cls, dist = layers.Dense(4)(x), layers.Dense(4)(x)
    return keras.Model(inputs, {"cls": cls, "dist": dist})


TEACHERS = {
    "a tensor": lambda: units(4, hidden=16),
    "one head": lambda: _renamed(units(4, hidden=16)),
    "several": lambda: [units(4, hidden=16), units(4, hidden=12)],
    "several with one head": lambda: [
        _renamed(units(4, hidden=16)),
        _renamed(units(4, hidden=12)),
    ],
}


def _renamed(model):
    return keras.Model(model.inputs[0], {"dist": model.outputs[0]})


@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
def test_a_head_for_labels_and_a_head_for_the_teacher(teacher):
    x, y = vectors()
    y = np.minimum(y, 3)
    student, teacher = deit(), teacher()
    distiller = distiller_of(
        student,
        teacher,
        {
            "cls": keras.losses.SparseCategoricalCrossentropy(True),
            "dist": FunctionMatching(),
        },
    )
    logs = evaluated(distiller, x, {"cls": y, "dist": y})
    members = teacher if isinstance(teacher, list) else [teacher]
    answers = [keras.tree.flatten(m(x))[0] for m in members]
    p = np.mean([to_numpy(ops.softmax(a)) for a in answers], axis=0)
    q = to_numpy(ops.softmax(student(x)["dist"]))
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert abs(logs["dist_soft_loss"] - expected) < 1e-5
    distiller.fit(x, {"cls": y, "dist": y}, verbose=0)


def test_heads_that_only_training_has():
    x, y = vectors()
    y = np.minimum(y, 3)
    student = Deit()
    student(x)
    losses = {
        "cls": keras.losses.SparseCategoricalCrossentropy(True),
        "dist": FunctionMatching(),
    }
    distiller = distiller_of(student, units(4, hidden=16), losses)
    logs = distiller.fit(x, {"cls": y, "dist": y}, verbose=0).history
    assert {"cls_loss", "dist_soft_loss"} <= set(logs)
    with pytest.raises(ValueError, match="depend on `training`"):
        evaluated(distiller, x, {"cls": y, "dist": y})


ANSWERS = {
    "tuple": lambda y: (y, y),
    "dict": lambda y: {"logits": y, "hidden": y},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_structures_that_do_not_fit(answer):
    x, _ = vectors()
    teacher = units(4, hidden=16)
    distiller = distiller_of(
        units(4), lambda x: answer(teacher(x)), FunctionMatching()
    )
    with pytest.raises(ValueError, match=r"same structure.*Wrap the teacher"):
        evaluated(distiller, x)


@pytest.mark.parametrize("answer", [lambda y: [y], lambda y: {"logits": y}])
def test_a_structure_of_one_equals_that_one(answer):
    x, _ = vectors()
    student, teacher = units(4), units(4, hidden=16)
    wrapped = distiller_of(
        student, lambda x: answer(teacher(x)), FunctionMatching()
    )
    plain = distiller_of(student, teacher, FunctionMatching())
    assert abs(evaluated(wrapped, x)["loss"] - evaluated(plain, x)["loss"]) == 0


# What is bypassed, or runs for nothing


def test_a_teacher_that_nothing_compares_with():
    models = units(4), units(4, hidden=16)
    with pytest.warns(
        UserWarning, match=r"no loss compares with it.*ValueMatching"
    ):
        distiller_of(*models, "mse")
    # Metrics that look at the teacher, and an alpha of 0, are an experiment.
    distiller_of(*models, "mse", metrics=[TeacherAgreement()])
    distiller_of(*models, ClassicKD(alpha=0))


@pytest.mark.parametrize("method", ["train_step", "compute_loss"])
def test_a_student_with_steps_of_its_own(method):
    own = type("Own", (keras.Sequential,), {method: lambda self, *args: None})
    student = own([keras.Input((6,)), layers.Dense(4)])
    with pytest.warns(UserWarning, match=f"overrides `{method}`"):
        Distiller(student=student, teacher=units(4, hidden=16))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_layer_that_draws_a_view_of_its_own(role):
    def net(width, random):
        inner = [layers.RandomFlip(name="flip")] if random else []
        return keras.Sequential(
            [keras.Input((8, 8, 1)), *inner, cnn(width)], name=f"net_{width}"
        )

    models = {
        "student": net(2, role == "student"),
        "teacher": net(4, role == "teacher"),
    }
    with pytest.warns(UserWarning, match=f"The {role} .*'flip'"):
        Distiller(**models)


def test_the_student_inside_the_teacher():
    student = units(4)
    with pytest.raises(
        ValueError, match="must not share weights with the teacher"
    ):
        Distiller(student=student, teacher=lambda x: student(x))


def test_a_distiller_as_student():
    distiller = Distiller(student=units(4), teacher=units(4, hidden=16))
    with pytest.raises(TypeError, match=r"Pass `distiller\.student`"):
        Distiller(student=distiller, teacher=units(4, hidden=16))


@pytest.mark.every_backend
def test_several_processes(monkeypatch):
    x, _ = vectors()
    distiller = distiller_of(units(4), units(4, hidden=16), FunctionMatching())
    if BACKEND == "torch":
        monkeypatch.setenv("WORLD_SIZE", "2")
    elif BACKEND == "tensorflow":
        config = '{"cluster": {"worker": ["a:1", "b:1"]}}'
        monkeypatch.setenv("TF_CONFIG", config)
    else:
        import jax

        monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(RuntimeError, match="each would train a student of"):
        distiller.fit(x, verbose=0)


# During one fit()


class Once(keras.callbacks.Callback):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.function()


def test_a_teacher_assigned_by_a_callback_takes_effect():
    x, _ = vectors()
    student, first, second = units(4), units(4, hidden=16), units(4, hidden=12)
    distiller = distiller_of(student, first, FunctionMatching())
    student.optimizer = None
    distiller.compile(keras.optimizers.SGD(0.0), FunctionMatching())

    def assign():
        distiller.teacher = second

    logs = distiller.fit(
        x, epochs=2, verbose=0, callbacks=[Once(assign)]
    ).history["loss"]
    losses = [
        evaluated(distiller_of(student, t, FunctionMatching()), x)["loss"]
        for t in (first, second)
    ]
    np.testing.assert_allclose(logs, losses, rtol=1e-5)


def test_compile_by_a_callback_says_what_to_do():
    x, _ = vectors()
    distiller = distiller_of(units(4), units(4, hidden=16), FunctionMatching())
    compile_again = Once(lambda: distiller.compile("sgd", FunctionMatching(2)))
    with pytest.raises(RuntimeError, match="use a schedule in the loss"):
        distiller.fit(x, epochs=2, verbose=0, callbacks=[compile_again])


# Data


def test_weights_of_validation_data_without_labels():
    x, _ = vectors()
    weights = np.linspace(0, 3, len(x)).astype("float32")
    distiller = distiller_of(units(4), units(4, hidden=16), FunctionMatching())
    history = distiller.fit(
        x, verbose=0, validation_data=(x, None, weights)
    ).history
    logs = evaluated(distiller, x, sample_weight=weights)
    assert abs(history["val_loss"][0] - logs["loss"]) < 1e-6


def test_class_weight_without_labels():
    x, _ = vectors()
    distiller = distiller_of(units(4), units(4, hidden=16), FunctionMatching())
    with pytest.raises(ValueError, match="`class_weight` weights samples by"):
        distiller.fit(x, class_weight={0: 2.0}, verbose=0)


LABELS = {
    "void": lambda y: np.where(y == 0, 255, y),
    "unlabelled": lambda y: np.where(y == 0, -1, y),
    "fractions": lambda y: y + np.float32(0.5),
    "several at once": lambda y: (np.arange(5) <= y[:, None]).astype("int32"),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_that_are_no_classes(labels):
    x, y = vectors()
    distiller = distiller_of(mlp(), mlp(16), ClassicKD())
    # TensorFlow and PyTorch refuse some of these by themselves.
    with pytest.raises(Exception, match=r"(?i)label|target|out of bounds"):
        evaluated(distiller, x, labels(y))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("wrong", [-1.0, 2.0, np.nan])
def test_several_labels_that_are_no_shares(count, wrong):
    x, _ = vectors()
    labels = np.random.default_rng(0).uniform(size=(32, count))
    weights = np.ones(32)
    distiller = distiller_of(units(count), units(count, hidden=16), BinaryKD())
    labels = labels[:, 0] if count == 1 else labels
    assert evaluated(distiller, x, labels)["label_loss"] > 0
    labels[3], weights[3] = wrong, 0
    with pytest.raises(ValueError, match="1 invalid labels in batch 0"):
        evaluated(distiller, x, labels)
    if not np.isnan(wrong):
        evaluated(distiller, x, labels, sample_weight=weights)


@pytest.mark.parametrize("loss", [FunctionMatching, BinaryKD])
@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_a_teacher_that_decides_is_no_teacher(loss, dtype):
    x, _ = vectors()

    def teacher(inputs):
        return ops.cast(inputs[:, :4] > 0, dtype)

    loss = loss(1.0) if loss is BinaryKD else loss()
    with pytest.raises(TypeError, match=f"Received: outputs of dtype '{dtype}"):
        evaluated(distiller_of(units(4), teacher, loss), x)


def boxes_behind(view, labels, loss):
    x, _ = images(8)
    count = labels.shape[-1]
    distiller = Distiller(
        student=cnn(2, classes=count),
        teacher=cnn(4, classes=count),
        augment=ConsistentAugment([view]),
    )
    distiller.compile("sgd", loss)
    distiller.train_on_batch(x, labels)


@pytest.mark.parametrize(
    "loss",
    [ValueMatching(alpha=0.5), ValueMatching() + keras.losses.Huber()],
)
def test_coordinates_do_not_follow_a_view(loss):
    labels, flip = np.ones((8, 4), "float32"), layers.RandomFlip("horizontal")
    with pytest.warns(UserWarning, match="boxes and key points"):
        boxes_behind(flip, labels, loss)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The view moves pixels")
        boxes_behind(flip, labels[:, :3], loss)
        boxes_behind(layers.RandomBrightness(0.1), labels, loss)
        boxes_behind(flip, labels, ValueMatching())


@pytest.mark.parametrize(
    "label_loss",
    [
        keras.losses.CategoricalCrossentropy(from_logits=True),
        keras.losses.CategoricalFocalCrossentropy(from_logits=True),
        "categorical_crossentropy",
    ],
)
def test_class_indices_for_a_loss_of_one_hot_labels(label_loss):
    x, y = vectors()
    loss = ClassicKD(label_loss=label_loss)
    distiller = distiller_of(mlp(), mlp(16), loss)
    evaluated(distiller, x, np.eye(5)[y])
    with pytest.raises(ValueError, match=r"(?s)one-hot.*Received.*\(32,"):
        evaluated(distiller, x, y)


def test_a_teacher_without_finite_outputs_in_a_single_batch():
    x, _ = vectors()
    teacher = mlp(16)
    distiller = distiller_of(
        mlp(), lambda x: teacher(x) * np.nan, FunctionMatching()
    )
    for method in (distiller.train_on_batch, distiller.test_on_batch):
        with pytest.raises(ValueError, match="must return finite outputs"):
            method(x)


# The teacher


class Counting(layers.Layer):
    """Counts its calls, in inference too."""

    def build(self, shape):
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="calls"
        )

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs


def test_a_teacher_that_writes_in_inference_stays_as_it_was():
    x, _ = vectors()
    inputs = keras.Input((6,))
    hidden = Counting()(layers.Dense(16)(inputs))
    hidden = layers.BatchNormalization()(hidden, training=True)
    teacher = keras.Model(inputs, layers.Dense(5)(hidden))
    before = weights_of(teacher)
    distiller = distiller_of(mlp(), teacher, FunctionMatching())
    distiller.fit(x, epochs=2, batch_size=8, verbose=0)
    evaluated(distiller, x)
    assert same_weights(weights_of(teacher), before)


class Noise(layers.Layer):
    """Adds noise in inference too."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs):
        return inputs + keras.random.normal(
            ops.shape(inputs), seed=self.seed_generator
        )


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_teacher_that_draws_numbers_draws_others_in_each_step(wrapped):
    x, _ = vectors()
    model = keras.Sequential([keras.Input((6,)), Noise(), layers.Dense(4)])
    teacher = (lambda inputs: model(inputs)) if wrapped else model
    distiller = distiller_of(units(4, hidden=1), teacher, FunctionMatching())
    losses = [distiller.test_on_batch(x)[0] for _ in range(4)]
    assert len({float(loss) for loss in losses}) == 4


def test_a_function_around_a_model_that_changes():
    x, _ = vectors()
    student, teacher = mlp(), mlp(16)
    distiller = distiller_of(student, lambda x: teacher(x), FunctionMatching())
    evaluated(distiller, x)
    teacher.set_weights([3.0 * w for w in teacher.get_weights()])
    plain = distiller_of(student, teacher, FunctionMatching())
    expected = evaluated(plain, x)["loss"]
    assert abs(evaluated(distiller, x)["loss"] - expected) < 1e-5


# Exports and precision


@pytest.mark.every_backend
def test_distiller_and_student_are_exported_after_fit(tmp_path):
    x, _ = vectors(4)
    distiller = distiller_of(mlp(), mlp(16), FunctionMatching())
    distiller.fit(x, verbose=0)
    kind = {"format": "tf_saved_model"}
    if BACKEND == "torch":
        if IS_KERAS_3_14:
            pytest.skip("Keras 3.14 has no format for models on PyTorch.")
        kind = {"format": "torch"}
    for name, model in (("d", distiller), ("s", distiller.student)):
        path = tmp_path / (f"{name}.pt2" if BACKEND == "torch" else name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of JAX's
            model.export(path, verbose=False, **kind)
        assert pathlib.Path(path).exists() and os.path.getsize(path) > 0


@pytest.mark.every_backend
def test_layers_in_float16_have_their_loss_scaled():
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu", dtype="mixed_float16")(inputs)
    student = keras.Model(inputs, layers.Dense(5, dtype="float32")(x))
    distiller = distiller_of(student, mlp(16), FunctionMatching())
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    if BACKEND != "torch":
        x, _ = vectors()
        distiller.fit(x, verbose=0)


def test_a_hint_on_an_encoder_that_runs_twice():
    shared = keras.Sequential([keras.Input((6,)), layers.Dense(4)], name="enc")
    first, second = keras.Input((6,)), keras.Input((6,))
    x = layers.Concatenate()([shared(first), shared(second)])
    student = keras.Model([first, second], layers.Dense(4)(x))
    teacher = keras.models.clone_model(student)
    with pytest.raises(ValueError, match=r"^A hint needs a layer that runs"):
        Distiller(student=student, teacher=teacher, hints=[Hint("enc", "enc")])


def test_relations_across_widths():
    def net(width):
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(width, 3, name="conv")(inputs)
        return keras.Model(
            inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
        )

    def gram(teacher, student):
        def of(feature):
            flat = ops.reshape(feature, (ops.shape(feature)[0], -1))
            return ops.matmul(flat, ops.transpose(flat))

        return ops.mean(ops.square(of(teacher) - of(student)), axis=-1)

    x, _ = images()
    distiller = Distiller(
        student=net(2),
        teacher=net(4),
        hints=[Hint("conv", "conv", loss=gram, projector=None)],
    )
    distiller.compile("sgd", FunctionMatching())
    assert distiller.projectors == [None]
    assert evaluated(distiller, x / 255.0)["hint_loss"] > 0
