"""Tasks other than one softmax over whole images, each with its right value.

Pixels, tokens, boxes, very many classes, rows without labels, several exits:
every value is held against float64 NumPy, worked out from what the two models
predict.
"""

import keras
import numpy as np
import pytest
from common import CLASSES
from common import mlp
from common import vectors
from common import weights_of
from keras import layers

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import RecordedTeacher
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence
from keras_distill import record_teacher

TEMPERATURE = 2.0
ALPHA = 0.75


def log_softmax(logits, temperature=1.0):
    logits = np.asarray(logits, "float64") / temperature
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def divergences(teacher, student, temperature):
    """Return `T^2 * KL(p || q)` of each place, as `FunctionMatching`."""
    log_p = log_softmax(teacher, temperature)
    log_q = log_softmax(student, temperature)
    return temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def soft_losses(teacher, student):
    """Return `T^2 * CE(p, q)` of each place, as `ClassicKD`."""
    p = np.exp(log_softmax(teacher, TEMPERATURE))
    log_q = log_softmax(student, TEMPERATURE)
    return -(TEMPERATURE**2) * np.sum(p * log_q, axis=-1)


def label_losses(labels, student):
    """Return the cross-entropy of each place, 0 where there is no class."""
    is_class = (labels >= 0) & (labels < student.shape[-1])
    index = np.where(is_class, labels, 0)[..., np.newaxis]
    log_q = np.take_along_axis(log_softmax(student), index, axis=-1)
    return np.where(is_class, -log_q[..., 0], 0.0)


def evaluate(distiller, *data, **kwargs):
    return distiller.evaluate(*data, verbose=0, return_dict=True, **kwargs)


def frozen(student, teacher, loss, **kwargs):
    """Return a Distiller whose `fit()` changes nothing, and the outputs."""
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0), loss, **kwargs)
    return distiller


def classic(**kwargs):
    return ClassicKD(ALPHA, TEMPERATURE, **kwargs)


def assert_logs(logs, **expected):
    for name, value in expected.items():
        logged = logs[name][0] if isinstance(logs[name], list) else logs[name]
        np.testing.assert_allclose(logged, value, rtol=2e-5, err_msg=name)


# Labels that some places lack


def pixels(filters, name=None):
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.Conv2D(CLASSES, 1),
        ],
        name=name,
    )


def ignoring(label):
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=label
    )


def test_void_pixels_have_no_label_and_still_a_teacher():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6, 4, 4, 3)).astype("float32")
    y = generator.integers(0, CLASSES, size=(6, 4, 4))
    y[generator.uniform(size=y.shape) < 0.3] = 255
    student, teacher = pixels(2), pixels(8)
    distiller = frozen(student, teacher, classic(label_loss=ignoring(255)))
    logs = distiller.fit(x, y, batch_size=6, verbose=0).history
    outputs = student.predict(x, verbose=0)
    soft = np.mean(soft_losses(teacher.predict(x, verbose=0), outputs))
    label = label_losses(y, outputs).sum() / (y != 255).sum()
    expected = dict(
        soft_loss=soft,
        label_loss=label,
        loss=ALPHA * soft + (1 - ALPHA) * label,
    )
    assert_logs(logs, **expected)
    assert_logs(evaluate(distiller, x, y, batch_size=6), **expected)


@pytest.mark.parametrize("labelled", [0, 5])
def test_rows_without_labels_learn_from_the_teacher_alone(labelled):
    x, y = vectors(8)
    y[labelled:] = -1
    student, teacher = mlp(), mlp(16)
    distiller = frozen(student, teacher, classic(label_loss=ignoring(-1)))
    logs = evaluate(distiller, x, y)
    outputs = student.predict(x, verbose=0)
    soft = np.mean(soft_losses(teacher.predict(x, verbose=0), outputs))
    label = label_losses(y, outputs).sum() / max(labelled, 1)
    assert_logs(
        logs,
        soft_loss=soft,
        label_loss=label,
        loss=ALPHA * soft + (1 - ALPHA) * label,
    )
    distiller.optimizer.learning_rate = 0.1
    distiller.fit(x, y, verbose=0)
    assert all(np.isfinite(w).all() for w in weights_of(student))


# Weights, and batches that do not divide the data


@pytest.mark.parametrize("by", ["sample", "class"])
def test_weights_in_a_smaller_last_batch(by):
    x, y = vectors(21)
    weight = np.linspace(0.0, 3.0, CLASSES).astype("float32")
    student, teacher = mlp(), mlp(16)
    divergence = TeacherDivergence()
    distiller = frozen(
        student, teacher, classic(), weighted_metrics=[divergence]
    )
    given = (
        dict(sample_weight=weight[y])
        if by == "sample"
        else dict(class_weight=dict(enumerate(weight)))
    )
    logs = distiller.fit(
        x, y, batch_size=8, shuffle=False, verbose=0, **given
    ).history
    t, s = (m.predict(x, verbose=0) for m in (teacher, student))
    soft = np.mean(weight[y] * soft_losses(t, s))
    label = np.mean(weight[y] * label_losses(y, s))
    weighed = np.average(divergences(t, s, 1.0), weights=weight[y])
    assert_logs(
        logs,
        soft_loss=soft,
        label_loss=label,
        loss=ALPHA * soft + (1 - ALPHA) * label,
        teacher_divergence=weighed,
    )


# What a student adds to the loss by itself


class Penalty(layers.Layer):
    """Adds a loss of its own to that of the model."""

    def call(self, inputs):
        self.add_loss(0.5 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def test_losses_of_layers_and_regularisers_are_added():
    x, y = vectors(16)
    inputs = keras.Input((6,))
    hidden = layers.Dense(
        4,
        kernel_regularizer=keras.regularizers.L2(0.1),
        activity_regularizer=keras.regularizers.L1(0.01),
        name="hidden",
    )(inputs)
    student = keras.Model(inputs, layers.Dense(CLASSES)(Penalty()(hidden)))
    distiller = frozen(student, mlp(16), classic())
    kernel = student.get_layer("hidden").get_weights()[0].astype("float64")
    features = x @ kernel
    added = (
        0.1 * np.sum(kernel**2)
        + 0.01 * np.sum(np.abs(features)) / len(x)
        + 0.5 * np.mean(features**2)
    )
    for logs in (
        distiller.fit(x, y, batch_size=16, verbose=0).history,
        evaluate(distiller, x, y, batch_size=16),
    ):
        loss, soft, label = (
            np.squeeze(logs[name])
            for name in ("loss", "soft_loss", "label_loss")
        )
        parts = ALPHA * soft + (1 - ALPHA) * label
        np.testing.assert_allclose(loss - parts, added, rtol=1e-4)


# Extreme logits of a teacher


def with_masked_class(value):
    """A teacher that rules class 2 out by a logit of `value`."""
    mask = np.zeros(CLASSES, "float32")
    mask[2] = value
    inputs = keras.Input((6,))
    outputs = mlp(16)(inputs)
    return keras.Model(inputs, outputs + keras.ops.convert_to_tensor(mask))


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_a_class_that_the_teacher_rules_out(temperature):
    x, _ = vectors(8)
    teacher, student = with_masked_class(-1e9), mlp()
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.1), FunctionMatching(temperature))
    t, s = (m.predict(x, verbose=0) for m in (teacher, student))
    expected = np.mean(divergences(t, s, temperature))
    assert_logs(evaluate(distiller, x), loss=expected)
    distiller.fit(x, verbose=0, epochs=3)
    assert evaluate(distiller, x)["loss"] < expected


def test_infinite_logits_are_refused_and_leave_the_student_intact():
    x, _ = vectors(8)
    student = mlp()
    distiller = Distiller(student=student, teacher=with_masked_class(-np.inf))
    distiller.compile(keras.optimizers.SGD(0.1), FunctionMatching())
    with pytest.raises(ValueError, match="NaN or infinity for 8 rows of batch"):
        distiller.fit(x, verbose=0)
    assert all(np.isfinite(w).all() for w in weights_of(student))


# Many classes


def test_fifty_thousand_classes():
    x, _ = vectors(4)
    y = np.array([0, 49_999, 7, 31_000])
    student, teacher = (mlp(n, classes=50_000) for n in (2, 4))
    # Far from uniform, so that the digits that could be lost are there.
    teacher.set_weights([8 * w for w in teacher.get_weights()])
    decided = teacher.predict(x, verbose=0).argmax(axis=-1)
    *others, bias = student.get_weights()
    bias[decided[0]] = 10.0  # one sample on which the two agree
    student.set_weights([*others, bias])
    agreement = TeacherAgreement()
    distiller = frozen(student, teacher, classic(), metrics=[agreement])
    t, s = (m.predict(x, verbose=0) for m in (teacher, student))
    agreed = np.mean(decided == s.argmax(axis=-1))
    assert 0 < agreed < 1
    assert_logs(
        evaluate(distiller, x, y),
        soft_loss=np.mean(soft_losses(t, s)),
        label_loss=np.mean(label_losses(y, s)),
        teacher_agreement=agreed,
    )


# Boxes and their classes


def detector(units, anchors=3):
    inputs = keras.Input((6,))
    hidden = layers.Dense(units, "relu")(inputs)

    def head(size, name):
        flat = layers.Dense(anchors * size)(hidden)
        return layers.Reshape((anchors, size), name=name)(flat)

    return keras.Model(
        inputs, {"classes": head(CLASSES, "classes"), "boxes": head(4, "boxes")}
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_detection_with_classes_and_boxes(weighted):
    generator = np.random.default_rng(0)
    x, _ = vectors(10)
    y = {
        "classes": generator.integers(0, CLASSES, size=(10, 3)),
        "boxes": generator.normal(size=(10, 3, 4)).astype("float32"),
    }
    # The anchors without an object have a class, background, and no box.
    positive = generator.uniform(size=(10, 3)).astype("float32")
    weights = {
        "classes": np.ones((10, 3), "float32"),
        "boxes": np.where(positive > 0.6, positive, 0).astype("float32"),
    }
    student, teacher = detector(4), detector(16)
    distiller = frozen(
        student,
        teacher,
        {"classes": classic(), "boxes": keras.losses.Huber()},
        loss_weights={"classes": 1.0, "boxes": 3.0},
    )
    given = dict(sample_weight=weights) if weighted else {}
    logs = distiller.fit(
        x, y, batch_size=4, shuffle=False, verbose=0, **given
    ).history
    t, s = (m.predict(x, verbose=0) for m in (teacher, student))
    soft = np.mean(soft_losses(t["classes"], s["classes"]))
    label = np.mean(label_losses(y["classes"], s["classes"]))
    error = np.abs(y["boxes"] - s["boxes"].astype("float64"))
    huber = np.where(error <= 1, error**2 / 2, error - 0.5).mean(axis=-1)
    boxes = np.mean(huber * (weights["boxes"] if weighted else 1.0))
    assert_logs(
        logs,
        classes_soft_loss=soft,
        classes_label_loss=label,
        boxes_loss=boxes,
        loss=ALPHA * soft + (1 - ALPHA) * label + 3 * boxes,
    )


# Several exits against one teacher


def with_exits(units=4):
    inputs = keras.Input((6,))
    first = layers.Dense(units, "relu")(inputs)
    second = layers.Dense(units, "relu")(first)
    third = layers.Dense(units, "relu")(second)
    return keras.Model(
        inputs, [layers.Dense(CLASSES)(h) for h in (first, second, third)]
    )


def test_early_exits_learn_from_the_end_of_one_teacher():
    x, y = vectors(12)
    student, teacher = with_exits(), mlp(16)
    inputs = keras.Input((6,))
    distiller = frozen(
        student,
        keras.Model(inputs, [teacher(inputs)] * 3),
        [FunctionMatching(TEMPERATURE), FunctionMatching(), classic()],
        loss_weights=[0.2, 0.3, 1.0],
    )
    logs = evaluate(distiller, x, [y, y, y])
    t, exits = teacher.predict(x, verbose=0), student.predict(x, verbose=0)
    matching = [
        np.mean(divergences(t, s, temperature))
        for s, temperature in zip(exits, (TEMPERATURE, 1.0))
    ]
    soft = np.mean(soft_losses(t, exits[2]))
    label = np.mean(label_losses(y, exits[2]))
    last = ALPHA * soft + (1 - ALPHA) * label
    assert_logs(logs, loss=0.2 * matching[0] + 0.3 * matching[1] + last)
    distiller.optimizer.learning_rate = 0.1
    before = weights_of(student)
    distiller.fit(x, [y, y, y], verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, weights_of(student)))


# Tokens, of which the likeliest are recorded


def language_model(units, tokens=20):
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(tokens, units),
            layers.Conv1D(units, 2, padding="causal", activation="relu"),
            layers.Dense(tokens),
        ]
    )


def top_losses(teacher, student, k):
    """Return `soft_losses` with all but the `k` likeliest as one class."""
    p = np.exp(log_softmax(teacher))
    is_kept = np.argsort(np.argsort(-p, axis=-1), axis=-1) < k
    rest = np.sum(p, axis=-1, keepdims=True, where=~is_kept)
    # The teacher's probabilities at the temperature, with an even rest.
    p = np.where(is_kept, p, rest / (p.shape[-1] - k))
    p = np.exp(log_softmax(np.log(p), TEMPERATURE))
    q = np.exp(log_softmax(student, TEMPERATURE))
    kept = np.sum(p * np.log(q), axis=-1, where=is_kept)
    p_rest, q_rest = (np.sum(x, axis=-1, where=~is_kept) for x in (p, q))
    return -(TEMPERATURE**2) * (kept + p_rest * np.log(q_rest))


def test_the_likeliest_tokens_of_a_recording(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 20, size=(12, 5)).astype("int32")
    y = np.roll(x, -1, axis=1)
    student, teacher = language_model(4), language_model(16)
    for model in (student, teacher):
        # Far from uniform, so that it matters what is kept.
        model.set_weights([5 * w for w in model.get_weights()])
    record_teacher(
        teacher,
        x,
        tmp_path,
        batch_size=4,
        top_k=6,
        storage_dtype="float32",
        verbose=0,
    )
    distiller = frozen(student, RecordedTeacher(tmp_path), classic())
    weight = generator.uniform(size=(12, 5)).astype("float32")
    t, s = (m.predict(x, verbose=0) for m in (teacher, student))
    logs = distiller.fit(x, y, sample_weight=weight, verbose=0).history
    assert_logs(
        logs,
        soft_loss=np.mean(weight * top_losses(t, s, 6)),
        label_loss=np.mean(weight * label_losses(y, s)),
    )
    # What is kept differs from what the teacher gives.
    whole = np.mean(weight * soft_losses(t, s))
    assert abs(whole - logs["soft_loss"][0]) > 1e-3 * whole
