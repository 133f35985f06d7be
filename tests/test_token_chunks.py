"""`tokens_per_chunk`: the step without the logits of all tokens is the same."""

import subprocess

import keras
import numpy as np
import pytest
from common import BACKEND
from common import to_numpy
from common import weights_of
from keras import layers
from programs import command
from programs import environment

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import DecoupledKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import record_teacher

pytestmark = pytest.mark.any_backend

WORDS, BATCH, TIME = 23, 4, 7


def language_model(width=6, tied=True, masks=False, seed=0, **options):
    """Token ids to logits, by an embedding that is also the last layer."""
    keras.utils.set_random_seed(seed)
    embedding = layers.ReversibleEmbedding(
        WORDS, width, tie_weights=tied, mask_zero=masks, **options
    )
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Dense(width, "relu", name="body")(embedding(inputs))
    return keras.Model(inputs, embedding(hidden, reverse=True))


def with_dense(*after, width=6, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Embedding(WORDS, width)(inputs)
    outputs = layers.Dense(WORDS)(layers.Dropout(0.3, seed=1)(hidden))
    for layer in after:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def tokens(seed=0, size=(BATCH, TIME)):
    random = np.random.default_rng(seed)
    x, y = random.integers(1, WORDS, (2, *size)).astype("int32")
    weights = random.uniform(0.1, 2.0, size).astype("float32")
    weights[:, -2:] = 0.0
    return x, y, weights


def trained(chunk, student, teacher, loss, data, batch_size=3, **options):
    """Return everything that a short training leaves."""
    keras.utils.set_random_seed(3)
    distiller = Distiller(
        student=student(), teacher=teacher(), tokens_per_chunk=chunk, **options
    )
    distiller.compile(keras.optimizers.SGD(0.5), loss=loss())
    x, y, weights = data
    fitted = distiller.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=batch_size,
        epochs=3,
        verbose=0,
    )
    scores = distiller.evaluate(
        x, y, sample_weight=weights, verbose=0, return_dict=True
    )
    return weights_of(distiller.student), fitted.history, scores


def same(one, other, tolerance=1e-5):
    keras.tree.assert_same_structure(one, other)
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_same_in_chunks(
    *models_loss_data, chunk=5, tolerance=1e-5, **options
):
    """Assert that chunks change nothing; return what a training leaves."""
    whole, in_chunks = (
        trained(size, *models_loss_data, **options) for size in (None, chunk)
    )
    same(whole, in_chunks, tolerance)
    return whole


LOSSES = {
    "forward": lambda: FunctionMatching(2.0),
    "reverse": lambda: FunctionMatching(divergence="reverse"),
    "per counted token": lambda: FunctionMatching(
        divergence="jensen_shannon", reduction="mean_with_sample_weight"
    ),
    "labels": lambda: ClassicKD(
        keras.optimizers.schedules.ExponentialDecay(0.9, 2, 0.5), 2.0
    ),
    "two parts": lambda: DecoupledKD(label_weight=0.5),
    "standardized": lambda: FunctionMatching(standardize_logits=True),
    "a sum": lambda: (
        0.7 * FunctionMatching(reduction="sum")
        + keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("chunk", [5, 64])
def test_training_is_the_same_for_every_loss(loss, chunk):
    models = language_model, lambda: language_model(8, False, seed=1)
    whole = assert_same_in_chunks(*models, loss, tokens(), chunk=chunk)
    assert not np.allclose(whole[0][0], weights_of(language_model())[0])


MODELS = {
    "tied and capped": lambda: language_model(logit_soft_cap=2.0),
    "masks": lambda: language_model(masks=True),
    "dropout": with_dense,
    "activation": lambda: with_dense(layers.Activation("tanh")),
    "lora": lambda: lora(with_dense()),
    "frozen head": lambda: frozen(language_model(tied=False)),
    "nested": lambda: nested(language_model()),
}


def lora(model):
    model.layers[-1].enable_lora(2)
    return model


def nested(model):
    inputs = keras.Input((TIME,), dtype="int32")
    return keras.Model(inputs, model(inputs))


def frozen(model):
    model.layers[1].trainable = False
    return model


@pytest.mark.parametrize("student", MODELS.values(), ids=MODELS)
def test_training_is_the_same_for_every_head(student):
    x, y, weights = tokens()
    x[1, 4:] = 0
    data = x, y, weights
    assert_same_in_chunks(
        student, lambda: language_model(20, seed=1), LOSSES["labels"], data
    )


def test_a_quantized_teacher():
    def teacher():
        model = with_dense(width=16, seed=1)
        model.layers[-1].quantize("int8")
        return model

    assert_same_in_chunks(
        with_dense, teacher, LOSSES["forward"], tokens(), tolerance=1e-3
    )


def test_probabilities():
    def model(seed=0):
        return with_dense(layers.Softmax(), seed=seed)

    assert_same_in_chunks(
        model, lambda: model(1), lambda: ClassicKD(from_logits=False), tokens()
    )


def test_one_output_per_sample():
    def model(width=5, seed=0):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [keras.Input((TIME,)), layers.Dense(width), layers.Dense(WORDS)]
        )

    x, y, _ = tokens()
    assert_same_in_chunks(
        model,
        lambda: model(9, 1),
        LOSSES["labels"],
        ((x / WORDS).astype("float32"), y[:, 0], None),
        chunk=3,
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    assert_same_in_chunks(
        language_model,
        lambda: language_model(8, seed=1),
        LOSSES["labels"],
        tokens(),
        tolerance=2e-2,
    )


def test_hints_and_regularizers_count_as_well():
    def student():
        model = language_model()
        model.get_layer("body").kernel_regularizer = keras.regularizers.L2(0.1)
        return model

    assert_same_in_chunks(
        student,
        lambda: language_model(8, seed=1),
        LOSSES["forward"],
        tokens(),
        hints=[Hint("body", "body", weight=0.5)],
    )


def test_tokens_that_do_not_count_give_no_gradient():
    x, y, weights = tokens()
    results = trained(
        4,
        language_model,
        lambda: language_model(8, seed=1),
        LOSSES["per counted token"],
        (x, y, 0 * weights),
    )
    same(results[0], weights_of(language_model()), tolerance=0.0)
    assert results[1]["loss"] == [0.0] * 3


def test_a_teacher_that_changes():
    """On JAX, its head must not be a constant of the compiled step."""
    x, _, _ = tokens()
    teacher = language_model(8, tied=False, seed=1)
    distiller = Distiller(
        student=language_model(), teacher=teacher, tokens_per_chunk=5
    )
    distiller.compile(keras.optimizers.SGD(0.0), loss=FunctionMatching())
    before = distiller.fit(x, verbose=0).history["loss"][0]
    teacher.layers[1].reverse_embeddings.assign(
        3.0 * teacher.layers[1].reverse_embeddings
    )
    after = distiller.fit(x, verbose=0).history["loss"][0]
    plain = Distiller(student=distiller.student, teacher=teacher)
    plain.compile(keras.optimizers.SGD(0.0), loss=FunctionMatching())
    expected = plain.fit(x, verbose=0).history["loss"][0]
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)
    assert abs(after - before) > 0.01 * before


def test_the_caller_keeps_the_models():
    student, teacher = language_model(), language_model(8, seed=1)
    x, y, _ = tokens()
    before = weights_of(teacher), to_numpy(teacher(x))
    distiller = Distiller(student=student, teacher=teacher, tokens_per_chunk=5)
    distiller.compile("adam", loss=ClassicKD())
    distiller.fit(x, y, verbose=0)
    same(before, (weights_of(teacher), to_numpy(teacher(x))), 0.0)
    assert distiller.student is student and distiller.teacher is teacher
    assert distiller.predict(x, verbose=0).shape == (BATCH, TIME, WORDS)
    assert len(student.layers[1]._inbound_nodes) == 2


def test_saved_and_loaded(tmp_path):
    x, y, _ = tokens()
    distiller = Distiller(
        student=language_model(),
        teacher=language_model(8, seed=1),
        tokens_per_chunk=5,
    )
    distiller.compile("adam", loss=ClassicKD())
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.tokens_per_chunk == 5
    loaded.teacher = distiller.teacher
    for each in (distiller, loaded):
        each.fit(x, y, verbose=0, shuffle=False)
    same(weights_of(distiller.student), weights_of(loaded.student))


def subclassed():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = language_model()

        def call(self, inputs):
            return self.inner(inputs)

    model = Model()
    model(tokens()[0])
    return model


REFUSED = {
    "a loss over the batch": ({"loss": DIST}, "compare each token alone"),
    "a class that is ignored": (
        {
            "loss": lambda: ClassicKD(
                label_loss=keras.losses.SparseCategoricalCrossentropy(
                    from_logits=True, ignore_class=0
                )
            )
        },
        "sample_weight",
    ),
    "metrics": ({"metrics": ["accuracy"]}, "Metrics read the logits"),
    "a loss without reduction": (
        {"loss": lambda: FunctionMatching(reduction=None)},
        "reduction",
    ),
    "a student without a graph": ({"student": subclassed}, "functional"),
    "a function as teacher": (
        {"teacher": lambda: keras.ops.square},
        "functional",
    ),
    "several teachers": (
        {"teacher": lambda: [language_model(8), language_model(8)]},
        "functional",
    ),
    "a teacher in another dtype": (
        {"teacher_dtype": "bfloat16"},
        "teacher_dtype",
    ),
    "no head": (
        {"student": lambda: with_dense(layers.LayerNormalization())},
        "Dense",
    ),
    "an activity regularizer": (
        {
            "student": lambda: with_dense(
                layers.Activation("relu", activity_regularizer="l2")
            )
        },
        "activity regularizer",
    ),
    "no whole number": ({"tokens_per_chunk": 2.5}, "tokens_per_chunk"),
    "another vocabulary": (
        {
            "teacher": lambda: keras.Sequential(
                [
                    keras.Input((None,), dtype="int32"),
                    layers.Embedding(9, 20),
                    layers.Dense(9),
                ]
            )
        },
        "9 classes",
    ),
}


@pytest.mark.parametrize("given, message", REFUSED.values(), ids=REFUSED)
def test_refused(given, message):
    given = {
        "student": language_model,
        "teacher": lambda: language_model(8, seed=1),
        "loss": FunctionMatching,
        "metrics": None,
        "tokens_per_chunk": 5,
        **given,
    }
    x, y, _ = tokens()
    with pytest.raises((ValueError, TypeError), match=message):
        distiller = Distiller(
            student=given.pop("student")(),
            teacher=given.pop("teacher")(),
            **{
                name: value
                for name, value in given.items()
                if name not in ("loss", "metrics")
            },
        )
        distiller.compile("sgd", loss=given["loss"](), metrics=given["metrics"])
        distiller.fit(x, y, verbose=0)


@pytest.mark.parametrize("role", ["teacher", "labels"])
def test_sequences_of_other_lengths_are_refused(role):
    x, y, _ = tokens()
    distiller = Distiller(
        student=language_model(),
        teacher=language_model(8, seed=1),
        teacher_preprocessing=(
            (lambda x: x[:, 1:]) if role == "teacher" else None
        ),
        tokens_per_chunk=5,
    )
    distiller.compile("sgd", loss=ClassicKD())
    with pytest.raises(ValueError, match=role):
        distiller.fit(x, y[:, : TIME - (role == "labels")], verbose=0)


def test_token_ids_outside_the_vocabulary_as_labels_are_refused():
    x, y, _ = tokens()
    y[0, 2] = WORDS
    distiller = Distiller(
        student=language_model(),
        teacher=language_model(8, seed=1),
        tokens_per_chunk=5,
    )
    distiller.compile("sgd", loss=ClassicKD())
    # Some backends refuse the label before the check of the batch is reported.
    message = "1 invalid labels|out of bounds|outside the valid range"
    with pytest.raises(Exception, match=message):
        distiller.fit(x, y, verbose=0)


def test_a_recording_of_logits_is_refused(tmp_path):
    x, _, _ = tokens()
    teacher = language_model(8, seed=1)
    recording = record_teacher(teacher, x, tmp_path / "r", epochs=1, verbose=0)
    with pytest.raises(ValueError, match="recording without `top_k`"):
        Distiller(
            student=language_model(), teacher=recording, tokens_per_chunk=5
        )


@pytest.mark.parametrize("loss", ["forward", "labels", "two parts", "a sum"])
def test_most_probable_tokens_of_a_recording(tmp_path, loss):
    x, _, _ = data = tokens()
    teacher = language_model(8, seed=1)
    recording = record_teacher(
        teacher, x, tmp_path, epochs=2, batch_size=3, top_k=4, verbose=0
    )
    recording.live = teacher
    assert_same_in_chunks(
        language_model, lambda: recording, LOSSES[loss], data, batch_size=None
    )


ON_TWO_DEVICES = """
import contextlib
import keras
from common import BACKEND
from test_token_chunks import *

scope = contextlib.nullcontext()
if BACKEND == "tensorflow":
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
else:
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == 2
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
with scope:
    found = trained(5, *PAIR, LOSSES["labels"], tokens(), batch_size=4)
np.savez("found.npz", *found[0], *map(np.array, found[1].values()))
"""
PAIR = language_model, lambda: language_model(8, seed=1)


@pytest.mark.every_backend
@pytest.mark.skipif(BACKEND == "torch", reason="has one device per process")
def test_two_devices_give_the_update_of_one(tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    subprocess.run(
        command("-c", ON_TWO_DEVICES),
        env={**environment(), "XLA_FLAGS": flags},
        check=True,
        cwd=tmp_path,
    )
    weights, history, _ = trained(
        5, *PAIR, LOSSES["labels"], tokens(), batch_size=4
    )
    with np.load(tmp_path / "found.npz") as found:
        expected = [*weights, *map(np.array, history.values())]
        same([found[name] for name in found.files], expected)
