"""Every data source and step option that `fit` takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from common import BACKEND
from common import CLASSES
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
from keras_distill import MixUp
from keras_distill import TeacherAgreement


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 8

    def __getitem__(self, index):
        at = slice(8 * index, 8 * index + 8)
        return self.x[at], self.y[at]


def generator_of(x, y):
    while True:
        yield from (Batches(x, y)[i] for i in range(len(x) // 8))


SOURCES = {
    "numpy": lambda x, y: dict(x=x, y=y, batch_size=8),
    "tf.data": lambda x, y: dict(
        x=tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    ),
    "PyDataset": lambda x, y: dict(x=Batches(x, y)),
    "DataLoader": lambda x, y: dict(
        x=torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y)), 8
        )
    ),
    "generator": lambda x, y: dict(x=generator_of(x, y), steps_per_epoch=4),
}


def trained(student, data, **compile_options):
    distiller = Distiller(student=student, teacher=mlp(16, name="teacher"))
    distiller.compile(
        keras.optimizers.SGD(0.1),
        ClassicKD(),
        metrics=["accuracy"],
        **compile_options,
    )
    distiller.fit(**data, shuffle=False, verbose=0)
    return weights_of(student)


@pytest.mark.parametrize("source", SOURCES)
def test_every_data_source_trains_alike(source):
    x, y = vectors()
    runs = []
    for name in ("numpy", source):
        keras.utils.set_random_seed(3)
        runs.append(trained(mlp(), SOURCES[name](x, y)))
    assert same_weights(*runs, 1e-6)


def test_unlabelled_data_of_every_form():
    x, y = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile("adam", metrics=["accuracy", TeacherAgreement()])
    history = distiller.fit(x, verbose=0, validation_data=(x, y)).history
    assert "accuracy" not in history and "val_accuracy" in history
    history = distiller.fit(
        x, epochs=2, verbose=0, validation_data=(x, y)
    ).history
    assert "accuracy" not in history and "teacher_agreement" in history
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    distiller.fit(dataset, shuffle=False, verbose=0)
    assert "accuracy" not in distiller.evaluate(x, verbose=0, return_dict=True)
    assert np.isfinite(distiller.train_on_batch(x[:8])[0])
    assert np.isfinite(distiller.test_on_batch(x[:8], y[:8])[0])


def test_sample_weight_and_class_weight_weigh_every_part():
    x, y = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile(keras.optimizers.SGD(0.0), ClassicKD())
    weight = np.arange(CLASSES, dtype="float32")
    rows = ClassicKD(reduction="none")
    answers = {"labels": y, "teacher": distiller.teacher.predict(x, verbose=0)}
    values = to_numpy(rows(answers, distiller.predict(x, verbose=0)))
    expected = np.mean(values * weight[y])
    by_class = distiller.fit(
        x, y, verbose=0, class_weight=dict(enumerate(weight))
    ).history
    by_sample = distiller.fit(x, y, sample_weight=weight[y], verbose=0).history
    for history in (by_class, by_sample):
        np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
        parts = 0.9 * history["soft_loss"][0] + 0.1 * history["label_loss"][0]
        np.testing.assert_allclose(parts, expected, rtol=1e-5)


def test_sample_weights_of_unlabelled_data():
    x, _ = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile(keras.optimizers.SGD(0.0))
    full = distiller.fit(x, verbose=0).history["loss"][0]
    half = np.full(32, 0.5, "float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, {}, half)).batch(8)
    for data in (dict(x=x, sample_weight=half), dict(x=dataset)):
        history = distiller.fit(**data, shuffle=False, verbose=0).history
        np.testing.assert_allclose(history["loss"][0], full / 2, rtol=1e-5)
    logs = distiller.evaluate(
        x, sample_weight=half, verbose=0, return_dict=True
    )
    np.testing.assert_allclose(logs["loss"], full / 2, rtol=1e-5)


@pytest.mark.parametrize("one_hot", [True, False])
def test_labels_and_weights_are_mixed_with_the_images(one_hot):
    x, y = images(8, 8)
    labels = np.eye(CLASSES, dtype="float32")[y] if one_hot else y
    weight = np.arange(8, dtype="float32")
    augment = ConsistentAugment([MixUp()], seed=5)
    student, teacher = cnn(2), cnn(4)
    student.get_layer(index=3).rate = 0.0
    distiller = Distiller(student=student, teacher=teacher, augment=augment)
    distiller.compile(
        keras.optimizers.SGD(0.0), ClassicKD(0.5), run_eagerly=True
    )
    logs = distiller.fit(
        x, labels, sample_weight=weight, batch_size=8, shuffle=False, verbose=0
    ).history

    data = {
        "images": x,
        "labels": np.eye(CLASSES, dtype="float32")[y],
        "sample_weight": weight,
    }
    mixed = ConsistentAugment([MixUp()], seed=5)(data, training=True)
    targets = {
        "labels": mixed["labels"],
        "teacher": teacher(mixed["images"], training=False),
    }
    # BatchNorm of the student normalises by the batch in training.
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    for variable, value in zip(twin.weights, student.get_weights()):
        variable.assign(value)
    outputs = twin(mixed["images"], training=True)
    expected = ClassicKD(0.5)(targets, outputs, mixed["sample_weight"])
    np.testing.assert_allclose(
        logs["loss"][0],
        float(expected.detach() if BACKEND == "torch" else expected),
        rtol=1e-4,
    )


def test_steps_per_execution():
    x, y = vectors(40)
    data = SOURCES["numpy"](x, y)
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="must be 1 with the PyTorch"):
            trained(mlp(), data, steps_per_execution=3)
        return
    runs = []
    for steps in (1, 3):
        keras.utils.set_random_seed(3)
        runs.append(trained(mlp(), data, steps_per_execution=steps))
    assert same_weights(*runs, 1e-6)


def test_gradient_accumulation():
    x, y = vectors()
    student = mlp()
    distiller = Distiller(student=student, teacher=mlp(16))
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    distiller.compile(optimizer, ClassicKD())
    twin = mlp()
    twin.set_weights(student.get_weights())
    whole = Distiller(student=twin, teacher=distiller.teacher)
    whole.compile(keras.optimizers.SGD(0.1), ClassicKD())
    distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    whole.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    assert same_weights(weights_of(student), weights_of(twin), 1e-6)


@pytest.mark.parametrize(
    "student_policy, teacher_policy",
    [
        ("mixed_bfloat16", "float32"),
        ("mixed_float16", "float32"),
        ("float32", "mixed_bfloat16"),
        ("float32", "mixed_float16"),
    ],
)
def test_mixed_precision(student_policy, teacher_policy):
    x, y = vectors()
    keras.config.set_dtype_policy(teacher_policy)
    teacher = mlp(16)
    keras.config.set_dtype_policy(student_policy)
    student = mlp()
    keras.config.set_dtype_policy("float32")
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.Adam(0.01), ClassicKD())
    history = distiller.fit(x, y, epochs=10, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["soft_loss"][-1] < history["soft_loss"][0]
    scaled = isinstance(
        distiller.optimizer, keras.optimizers.LossScaleOptimizer
    )
    assert scaled == (student_policy == "mixed_float16")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_image_types_under_half_precision(dtype):
    x, y = images(8, 8, dtype=dtype)
    keras.config.set_dtype_policy("mixed_bfloat16")
    distiller = Distiller(
        student=cnn(2),
        teacher=cnn(4),
        augment=ConsistentAugment([keras.layers.RandomFlip()]),
    )
    distiller.compile("adam", FunctionMatching())
    history = distiller.fit(x, y, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))


def test_a_list_of_batches_is_trained_whole():
    """The last, smaller batch counts, and the logs weigh it by its size."""
    x, y = vectors(20)
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile(keras.optimizers.SGD(0.0), ClassicKD())
    in_parts = distiller.evaluate(
        x, y, batch_size=8, verbose=0, return_dict=True
    )
    at_once = distiller.evaluate(
        x, y, batch_size=20, verbose=0, return_dict=True
    )
    for name, value in at_once.items():
        np.testing.assert_allclose(in_parts[name], value, rtol=1e-5)
