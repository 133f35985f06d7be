"""Teachers in another precision: same model, other arithmetic."""

import keras
import numpy as np
import pytest
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill.teachers._precision import InPrecision

pytestmark = pytest.mark.any_backend


def in_float32(outputs):
    return to_numpy(keras.ops.cast(outputs, "float32"))


def in_policy(policy, make):
    keras.config.set_dtype_policy(policy)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


def nested(width=6):
    inputs = keras.Input((8, 8, 1))
    x = cnn(width, classes=7, name="inner")(inputs)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


@pytest.mark.parametrize("make", [lambda: cnn(6), nested])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_computes_as_a_model_of_that_policy_does(make, dtype):
    x, _ = images(8)
    model = make()
    made_for_it = in_policy(f"mixed_{dtype}", make)
    made_for_it.set_weights(model.get_weights())
    before = weights_of(model)
    runner = InPrecision(model, dtype)
    outputs = runner(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    np.testing.assert_array_equal(
        in_float32(outputs), in_float32(made_for_it(x, training=False))
    )
    assert same_weights(weights_of(model), before)
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {
        "float32"
    }


def test_a_model_of_half_precision_can_run_in_full():
    x, _ = images(8)
    model = in_policy("mixed_bfloat16", lambda: cnn(6))
    full = cnn(6)
    full.set_weights(model.get_weights())
    np.testing.assert_allclose(
        in_float32(InPrecision(model, "float32")(x)),
        in_float32(full(x, training=False)),
        rtol=1e-6,
    )


def test_new_weights_of_the_teacher_take_effect_between_steps():
    x, _ = vectors()
    teacher = mlp(16)
    distiller = Distiller(
        student=mlp(), teacher=teacher, teacher_dtype="bfloat16"
    )
    distiller.compile("sgd", loss=FunctionMatching())
    before = distiller.evaluate(x, verbose=0)
    teacher.set_weights([3 * weight for weight in teacher.get_weights()])
    assert distiller.evaluate(x, verbose=0) != before


def test_the_students_loss_hardly_moves():
    x, y = images(32)
    teacher = cnn(8)
    losses = {}
    for dtype in (None, "bfloat16"):
        keras.utils.set_random_seed(1)
        distiller = Distiller(
            student=cnn(2), teacher=teacher, teacher_dtype=dtype
        )
        distiller.compile("sgd", loss=ClassicKD())
        distiller.fit(x / 255, y, epochs=2, shuffle=False, verbose=0)
        losses[dtype] = distiller.evaluate(x / 255, y, verbose=0)
    assert losses[None] != losses["bfloat16"]
    np.testing.assert_allclose(losses[None], losses["bfloat16"], rtol=1e-2)


def test_hints_and_frozen_layers_and_ensembles():
    x, y = images(8)
    teacher = cnn(6)
    teacher.layers[0].trainable = False
    student = cnn(2)
    hint = Hint(teacher.layers[0].name, student.layers[0].name)
    for given, hints in ((teacher, [hint]), ([teacher, nested()], [])):
        distiller = Distiller(
            student=student,
            teacher=given,
            hints=hints,
            teacher_dtype="bfloat16",
        )
        distiller.compile("sgd", loss=FunctionMatching())
        logs = distiller.fit(x, y, verbose=0).history
        assert np.all(np.isfinite(list(logs.values())))
    assert not teacher.layers[0].trainable


def test_saved_with_its_precision(tmp_path):
    x, _ = vectors()
    teacher = mlp(16)
    distiller = Distiller(
        student=mlp(), teacher=teacher, teacher_dtype="bfloat16"
    )
    distiller.compile("sgd", loss=FunctionMatching())
    distiller.fit(x, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    loaded.teacher = teacher
    np.testing.assert_allclose(
        loaded.evaluate(x, verbose=0),
        distiller.evaluate(x, verbose=0),
        rtol=1e-6,
    )


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
def test_int8_teachers_are_taken_as_they_are():
    x, y = vectors()
    teacher = mlp(16)
    exact = teacher.predict(x, verbose=0)
    teacher.quantize("int8")
    outputs = teacher.predict(x, verbose=0)
    assert not np.array_equal(exact, outputs)
    student, copy = mlp(), mlp()
    copy.set_weights(student.get_weights())
    from_model = Distiller(student=student, teacher=teacher)
    stored = FunctionMatching()
    from_model.compile(keras.optimizers.SGD(0.1), loss=FunctionMatching())
    copy.compile(keras.optimizers.SGD(0.1), loss=stored)
    from_model.fit(x, y, shuffle=False, epochs=2, verbose=0)
    copy.fit(x, outputs, shuffle=False, epochs=2, verbose=0)
    assert same_weights(weights_of(student), weights_of(copy), 1e-5)


class WithoutConfig(keras.Model):
    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, inputs):
        return self.dense(inputs)


def test_models_that_cannot_be_cloned_are_refused():
    model = WithoutConfig(layers.Dense(5))
    model(vectors()[0])
    with pytest.raises(ValueError, match="cannot be cloned"):
        Distiller(student=mlp(), teacher=model, teacher_dtype="bfloat16")
    with pytest.raises(TypeError, match="for Keras models"):
        Distiller(student=mlp(), teacher=lambda x: x, teacher_dtype="bfloat16")
    with pytest.raises(ValueError, match="Received: teacher_dtype='int4'"):
        Distiller(student=mlp(), teacher=mlp(), teacher_dtype="int4")
