"""For a Distiller, the student is compressed; other models as a whole."""

import keras
import numpy as np
import pytest
from common import mlp
from common import to_numpy
from keras import layers

from keras_distill import Distiller
from keras_distill import compare
from keras_distill.compression import export_litert
from keras_distill.compression import factorize
from keras_distill.compression import pack
from keras_distill.compression import prune_channels
from keras_distill.compression import quantize_aware
from keras_distill.compression import separate
from keras_distill.compression import unpack

pytestmark = pytest.mark.any_backend

FUNCTIONS = {
    "prune_channels": lambda model: prune_channels(model, 0.5),
    "factorize": lambda model: factorize(model, rank=2),
    "separate": separate,
    "quantize_aware": quantize_aware,
}


def classifier(cls=keras.Sequential):
    return cls(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(8, 3, name="stem"),
            layers.Flatten(),
            layers.Dense(8, name="hidden"),
            layers.Dense(3, name="logits"),
        ]
    )


class WithAStudent(keras.Sequential):
    """A model with an attribute `student` that is not a Distiller."""


def with_a_student():
    model = classifier(WithAStudent)
    model.student = mlp(4, name="other")
    return model


class OwnDistiller(Distiller):
    pass


def distiller(kind):
    return kind(student=classifier(), teacher=classifier())


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("kind", [Distiller, OwnDistiller])
def test_a_distiller_is_its_student(function, kind):
    whole = distiller(kind)
    expected, result = function(whole.student), function(whole)
    for one, other in zip(expected.weights, result.weights, strict=True):
        np.testing.assert_array_equal(
            to_numpy(one.value), to_numpy(other.value)
        )


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_attribute_called_student_makes_no_distiller(function):
    result = function(with_a_student())
    names = {layer.name for layer in result._flatten_layers()}
    assert names > {"stem", "hidden", "logits"}


@pytest.mark.parametrize("kind", [Distiller, OwnDistiller])
def test_files_and_reports_agree(kind, tmp_path):
    whole = distiller(kind)
    pack(whole, tmp_path / "packed")
    assert unpack(tmp_path / "packed").count_params() == (
        whole.student.count_params()
    )
    figures = compare({"run": whole}, litert=()).to_dict()["run"]
    assert figures["parameters"] == whole.student.count_params()
    export_litert(whole, tmp_path / "model.tflite")
    content = (tmp_path / "model.tflite").read_bytes()
    export_litert(whole.student, tmp_path / "student.tflite")
    other = (tmp_path / "student.tflite").read_bytes()
    assert len(content) == len(other)


def test_files_and_reports_of_a_model_with_a_student(tmp_path):
    model = with_a_student()
    of_layers = sum(layer.count_params() for layer in model.layers)
    figures = compare({"run": model}, litert=()).to_dict()["run"]
    assert figures["parameters"] >= of_layers > 400
    export_litert(model, tmp_path / "model.tflite")
    assert (tmp_path / "model.tflite").stat().st_size > 4 * of_layers
