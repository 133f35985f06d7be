"""`copy_layers`: which layer of the student gets which one of the teacher."""

import keras
import keras_hub
import numpy as np
import pytest
from common import to_numpy
from common import weights_of
from keras import layers

from keras_distill import copy_layers

pytestmark = pytest.mark.any_backend


def network(depth, width=4, classes=3, name="block"):
    blocks = [
        layers.Dense(width, "relu", name=f"{name}_{i}") for i in range(depth)
    ]
    head = layers.Dense(classes, name="head")
    return keras.Sequential([keras.Input((width,)), *blocks, head])


@pytest.mark.parametrize(
    "deep, shallow, expected",
    [
        (4, 2, (0, 2)),
        (12, 6, (0, 2, 4, 6, 8, 10)),
        (5, 3, (0, 1, 3)),
        (3, 3, (0, 1, 2)),
        (4, 1, (0,)),
        (2, 4, (0, 0, 1, 1)),
    ],
)
def test_layers_are_evenly_spaced(deep, shallow, expected):
    teacher, student = network(deep), network(shallow)
    before = weights_of(teacher)
    copied = copy_layers(teacher, student)
    assert copied == {
        **{f"block_{i}": f"block_{n}" for i, n in enumerate(expected)},
        "head": "head",
    }
    for name, source in copied.items():
        for one, other in zip(
            student.get_layer(name).get_weights(),
            teacher.get_layer(source).get_weights(),
        ):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(before, weights_of(teacher)):
        np.testing.assert_array_equal(one, other)


def test_chosen_numbers():
    copied = copy_layers(network(6), network(2), numbers=(5, 1))
    assert (copied["block_0"], copied["block_1"]) == ("block_5", "block_1")


def test_layers_without_a_counterpart_keep_their_weights():
    student = network(2)
    student.get_layer("head").name = "new_head"
    before = student.layers[-1].get_weights()
    assert "new_head" not in copy_layers(network(4), student)
    np.testing.assert_array_equal(
        before[0], student.layers[-1].get_weights()[0]
    )


def hub(kind, depth, width=8):
    sizes = {
        "num_layers": depth,
        "num_heads": 2,
        "hidden_dim": width,
        "intermediate_dim": 2 * width,
        "vocabulary_size": 30,
    }
    models = keras_hub.models
    if kind == "GPT2":
        return models.GPT2CausalLM(
            models.GPT2Backbone(**sizes, max_sequence_length=12)
        )
    if kind == "Bert":
        backbone = models.BertBackbone(**sizes, max_sequence_length=12)
        return models.BertTextClassifier(backbone, num_classes=3)
    return models.BartBackbone(**sizes, max_sequence_length=12)


@pytest.mark.parametrize("kind", ["GPT2", "Bert", "Bart"])
def test_all_weights_of_a_hub_student_come_from_the_teacher(kind):
    teacher, student = hub(kind, 4), hub(kind, 2)
    for weight in student.weights:
        weight.assign(keras.ops.full(weight.shape, 9.0, weight.dtype))
    copied = copy_layers(teacher, student)
    assert sum(new != old for new, old in copied.items()) >= 1
    assert not any((to_numpy(w.value) == 9.0).all() for w in student.weights)


def test_as_many_layers_are_the_same_model():
    teacher, student = hub("GPT2", 2), hub("GPT2", 2)
    copy_layers(teacher, student)
    inputs = {
        "token_ids": np.arange(12)[None],
        "padding_mask": np.ones((1, 12), "int32"),
    }
    np.testing.assert_allclose(
        *(to_numpy(model(inputs)) for model in (teacher, student)), atol=1e-6
    )


def test_training_the_student_leaves_the_teacher_alone():
    """On JAX, a step would delete weights that both models share."""
    teacher, student = network(4), network(2)
    before = weights_of(teacher)
    copy_layers(teacher, student)
    student.compile("sgd", "mse")
    student.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    for one, other in zip(before, weights_of(teacher)):
        np.testing.assert_array_equal(one, other)


def two_of_one_name():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="block_0")], name="inner"
    )
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="block_0"), inner]
    )


def quantized():
    model = network(4)
    model.get_layer("block_2").quantize("int8")
    return model


@pytest.mark.parametrize(
    "teacher, options, message",
    [
        (lambda: network(4, 5), {}, r"same shapes.*block_0"),
        (lambda: network(4, name="other", classes=4), {}, "same shapes.*head"),
        (quantized, {}, "not quantized"),
        (two_of_one_name, {}, "two layers 'block_0'"),
        (lambda: network(4), {"numbers": (1,)}, "2 numbers below 4"),
        (lambda: network(4), {"numbers": (1, 4)}, "2 numbers below 4"),
        (lambda: network(4), {"numbers": (0, 0.5)}, "numbers"),
        (
            lambda: network(4, name="other"),
            {"numbers": (0, 1)},
            "without such layers",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]),
            {},
            "No layer of the student",
        ),
        (lambda: keras.ops.relu, {}, "must be a keras.Model"),
    ],
)
def test_refused_before_anything_is_copied(teacher, options, message):
    student = network(2)
    before = weights_of(student)
    with pytest.raises((ValueError, TypeError), match=message):
        copy_layers(teacher(), student, **options)
    for one, other in zip(before, weights_of(student)):
        np.testing.assert_array_equal(one, other)
