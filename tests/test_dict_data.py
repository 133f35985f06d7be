"""Dicts of inputs, labels and weights, from every source that `fit` takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from common import to_numpy
from keras import layers
from reference.losses import classic_kd

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching

CLASSES = {"kind": 4, "mood": 3}
COUNT, SIZE = 24, 8


def network(units):
    inputs = {
        "seen": keras.Input((5,), name="seen"),
        "heard": keras.Input((2,), name="heard"),
    }
    hidden = layers.Concatenate()([inputs["seen"], inputs["heard"]])
    hidden = layers.Dense(units, "relu")(hidden)
    return keras.Model(
        inputs,
        {
            name: layers.Dense(classes, name=name)(hidden)
            for name, classes in CLASSES.items()
        },
    )


def samples():
    generator = np.random.default_rng(0)
    x = {
        "seen": generator.normal(size=(COUNT, 5)).astype("float32"),
        "heard": generator.normal(size=(COUNT, 2)).astype("float32"),
    }
    y = {
        name: generator.integers(0, classes, COUNT).astype("int32")
        for name, classes in CLASSES.items()
    }
    weight = {
        name: generator.uniform(size=COUNT).astype("float32")
        for name in CLASSES
    }
    return x, y, weight


def batches(data):
    def batch(at):
        return keras.tree.map_structure(lambda array: array[at], data)

    return [batch(slice(i, i + SIZE)) for i in range(0, COUNT, SIZE)]


def endless(data):
    while True:
        yield from batches(data)


class Batches(keras.utils.PyDataset):
    def __init__(self, data):
        super().__init__()
        self.batches = batches(data)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Rows(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return keras.tree.map_structure(lambda a: a[index], self.data)


SOURCES = {
    "arrays": lambda data: dict(
        x=data[0], y=data[1], sample_weight=data[2], batch_size=SIZE
    ),
    "tf.data": lambda data: dict(
        x=tf.data.Dataset.from_tensor_slices(data).batch(SIZE)
    ),
    "PyDataset": lambda data: dict(x=Batches(data)),
    "DataLoader": lambda data: dict(
        x=torch.utils.data.DataLoader(Rows(data), SIZE)
    ),
    "endless generator": lambda data: dict(x=endless(data), steps_per_epoch=3),
}


@pytest.mark.parametrize("source", SOURCES)
def test_dicts_of_inputs_labels_and_weights(source):
    x, y, weight = samples()
    student, teacher = network(4), network(16)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        {"kind": ClassicKD(0.75, 2.0), "mood": ClassicKD(0.5, 1.0)},
        loss_weights={"kind": 1.0, "mood": 3.0},
    )
    data = SOURCES[source]((x, y, weight))
    logs = distiller.fit(**data, epochs=2, shuffle=False, verbose=0).history

    t, s = to_numpy((teacher(x), student(x)))
    expected = 0.0
    for name, alpha, temperature, factor in (
        ("kind", 0.75, 2.0, 1.0),
        ("mood", 0.5, 1.0, 3.0),
    ):
        values = [
            classic_kd(*sample, alpha, temperature)
            for sample in zip(y[name], t[name], s[name])
        ]
        expected += factor * np.mean(weight[name] * values)
    np.testing.assert_allclose(logs["loss"], [expected] * 2, rtol=1e-5)


def test_labels_of_the_outputs_that_need_them_are_enough():
    x, y, _ = samples()
    student, teacher = network(4), network(16)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        {"kind": ClassicKD(0.0), "mood": FunctionMatching()},
    )
    logs = distiller.evaluate(
        x, {"kind": y["kind"]}, verbose=0, return_dict=True
    )
    s = student.predict(x, verbose=0)["kind"]
    expected = np.mean(
        [
            classic_kd(label, row, row, 0.0, 1.0)
            for label, row in zip(y["kind"], s)
        ]
    )
    np.testing.assert_allclose(logs["kind_label_loss"], expected, rtol=1e-5)


def test_inputs_named_student_and_teacher_go_to_both_models():
    """Only a view may split a batch by these names."""
    names = ("student", "teacher")
    inputs = {name: keras.Input((5,), name=name) for name in names}

    def model(units):
        hidden = layers.Concatenate()(list(inputs.values()))
        return keras.Model(inputs, layers.Dense(3)(layers.Dense(units)(hidden)))

    generator = np.random.default_rng(0)
    x = {
        name: generator.normal(size=(COUNT, 5)).astype("float32")
        for name in inputs
    }
    distiller = Distiller(student=model(2), teacher=model(4))
    distiller.compile("sgd", loss=FunctionMatching())
    expected = FunctionMatching()(
        distiller.teacher(x), to_numpy(distiller.student(x))
    )
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], to_numpy(expected), rtol=1e-5)
    distiller.fit(x, verbose=0)
