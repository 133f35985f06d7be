"""Teachers that are no Keras model of this backend, and wrapped ones.

The student must get what the teacher gives by itself: every loss is held
against float64 NumPy on the outputs that the teacher was asked for outside.
"""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from common import BACKEND
from common import CLASSES
from common import mlp
from common import vectors
from keras import ops
from reference.losses import function_matching
from reference.losses import log_softmax

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import RecordedTeacher
from keras_distill import TeacherAgreement
from keras_distill import record_teacher

pytestmark = pytest.mark.any_backend


def mean_divergence(teacher, student, temperature=1.0):
    rows = zip(teacher.reshape(-1, CLASSES), student.reshape(-1, CLASSES))
    return np.mean([function_matching(t, s, temperature) for t, s in rows])


def evaluate(distiller, *data):
    return distiller.evaluate(*data, verbose=0, return_dict=True)


# SavedModels


class Network(tf.Module):
    """What a SavedModel of a colleague holds: TensorFlow, and no Keras."""

    def __init__(self):
        kernel = np.random.default_rng(0).normal(size=(6, CLASSES))
        self.kernel = tf.Variable(kernel.astype("float32"))

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32)])
    def __call__(self, x):
        return tf.tanh(x) @ self.kernel


def saved_model(path):
    network = Network()
    tf.saved_model.save(network, str(path))
    return tf.saved_model.load(str(path)), network


def as_function(loaded):
    """Return a SavedModel as a function of this backend's tensors."""
    if BACKEND == "tensorflow":
        return loaded
    if BACKEND == "jax":
        from jax.experimental import jax2tf

        return jax2tf.call_tf(loaded)
    return lambda x: ops.convert_to_tensor(
        loaded(ops.convert_to_numpy(x)).numpy()
    )


@pytest.mark.every_backend
def test_a_saved_model_teaches(tmp_path):
    x, y = vectors(20)
    loaded, network = saved_model(tmp_path)
    student = mlp()
    distiller = Distiller(student=student, teacher=as_function(loaded))
    distiller.compile(
        keras.optimizers.SGD(0.5),
        FunctionMatching(2.0),
        metrics=[TeacherAgreement()],
    )
    t, s = network(x).numpy(), student.predict(x, verbose=0)
    before = evaluate(distiller, x, y)
    np.testing.assert_allclose(
        before["loss"], mean_divergence(t, s, 2.0), rtol=1e-5
    )
    distiller.fit(x, y, batch_size=8, epochs=3, verbose=0)
    assert evaluate(distiller, x, y)["loss"] < before["loss"]


@pytest.mark.every_backend
def test_the_recording_of_a_saved_model_teaches(tmp_path):
    x, y = vectors(20)
    loaded, network = saved_model(tmp_path / "model")
    record_teacher(
        as_function(loaded),
        x,
        tmp_path / "recording",
        batch_size=8,
        storage_dtype="float32",
        verbose=0,
    )
    student = mlp()
    distiller = Distiller(
        student=student, teacher=RecordedTeacher(tmp_path / "recording")
    )
    distiller.compile(keras.optimizers.SGD(0.0), FunctionMatching(2.0))
    logs = distiller.fit(x, y, verbose=0).history
    t, s = network(x).numpy(), student.predict(x, verbose=0)
    np.testing.assert_allclose(
        logs["loss"][0], mean_divergence(t, s, 2.0), rtol=1e-5
    )


# Wrapped models


def deciding(model):
    """Return a model whose logits leave nothing but the class it decides on."""
    inputs = keras.Input(model.input_shape[1:])
    decision = ops.argmax(model(inputs), axis=-1)
    return keras.Model(inputs, 1e4 * ops.one_hot(decision, CLASSES))


@pytest.mark.parametrize("loss", [FunctionMatching(), ClassicKD(1.0, 1.0)])
def test_hard_labels_of_a_wrapped_teacher(loss):
    x, _ = vectors(12)
    student, teacher = mlp(), mlp(16)
    distiller = Distiller(student=student, teacher=deciding(teacher))
    distiller.compile(keras.optimizers.SGD(0.1), loss)
    decided = teacher.predict(x, verbose=0).argmax(axis=-1)
    s = student.predict(x, verbose=0)
    # One-hot targets have no entropy: both losses are the cross-entropy.
    expected = -np.mean([log_softmax(a)[y] for a, y in zip(s, decided)])
    np.testing.assert_allclose(
        evaluate(distiller, x)["loss"], expected, rtol=1e-5
    )
    # The wrapper reads the teacher's weights, it has no copy of them.
    teacher.set_weights([-w for w in teacher.get_weights()])
    decided = teacher.predict(x, verbose=0).argmax(axis=-1)
    expected = -np.mean([log_softmax(a)[y] for a, y in zip(s, decided)])
    np.testing.assert_allclose(
        evaluate(distiller, x)["loss"], expected, rtol=1e-5
    )


# Text


def bert(width):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30,
        num_layers=1,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=width,
        max_sequence_length=8,
        dropout=0.0,
    )
    return keras_hub.models.BertTextClassifier(
        backbone=backbone, num_classes=CLASSES, dropout=0.0, preprocessor=None
    )


def test_bert_with_dict_inputs():
    generator = np.random.default_rng(0)
    length = np.array([8, 3, 5, 8, 1, 6])
    x = {
        "token_ids": generator.integers(1, 30, size=(6, 8)).astype("int32"),
        "segment_ids": np.zeros((6, 8), "int32"),
        "padding_mask": np.arange(8) < length[:, None],
    }
    y = generator.integers(0, CLASSES, size=6)
    student, teacher = bert(4), bert(8)
    teacher.set_weights([10 * w for w in teacher.get_weights()])
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        FunctionMatching(),
        metrics=["accuracy", TeacherAgreement()],
    )

    def logs_of_a_step():
        logs = distiller.fit(x, y, verbose=0).history
        return {name: values[0] for name, values in logs.items()}

    t, s = (m.predict(x, verbose=0) for m in (teacher, student))
    logs = logs_of_a_step()
    expected = dict(
        loss=mean_divergence(t, s),
        accuracy=np.mean(s.argmax(-1) == y),
        teacher_agreement=np.mean(s.argmax(-1) == t.argmax(-1)),
    )
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4)
    # Other tokens in the padding change nothing.
    x["token_ids"] = np.where(x["padding_mask"], x["token_ids"], 29)
    np.testing.assert_allclose(
        logs_of_a_step()["loss"], logs["loss"], rtol=1e-5
    )
    distiller.optimizer.learning_rate = 0.1
    logs_of_a_step()
    assert logs_of_a_step()["loss"] < logs["loss"]
