"""Weights and masks per sample, token and pixel: in losses, hints, metrics."""

import keras
import numpy as np
import pytest
from common import to_numpy
from keras import layers

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence

pytestmark = pytest.mark.any_backend

BATCH, PLACES, CLASSES, WIDTH = 6, 6, 5, 8


def tagger(width=WIDTH, mask=True, name=None):
    """Tokens to classes per token; 0 is padding."""
    inputs = keras.Input((PLACES,), dtype="int32")
    x = layers.Embedding(11, width, "random_normal", mask_zero=mask)(inputs)
    x = layers.Dense(WIDTH, "tanh", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x), name=name)


def tokens():
    generator = np.random.default_rng(0)
    x = generator.integers(1, 11, size=(BATCH, PLACES)).astype("int32")
    lengths = [6, 2, 3, 1, 5, 4]
    for row, length in zip(x, lengths):
        row[length:] = 0
    y = generator.integers(0, CLASSES, size=(BATCH, PLACES)).astype("int32")
    return x, y, (x != 0)


def feature(model, x, name="hidden"):
    inner = keras.Model(model.input, model.get_layer(name).output)
    return to_numpy(inner(x)).astype("float64")


def outputs(model, x):
    return to_numpy(model(x)).astype("float64")


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def divergences(teacher, student):
    p, q = softmax(teacher), softmax(student)
    return (p * np.log(p / q)).sum(-1)


def evaluated(distiller, *data, **kwargs):
    return distiller.evaluate(
        *data, verbose=0, return_dict=True, batch_size=BATCH, **kwargs
    )


def trained(distiller, *data, **kwargs):
    """Return the logs of one step that moves nothing."""
    history = distiller.fit(
        *data, verbose=0, batch_size=BATCH, shuffle=False, **kwargs
    )
    return {name: values[0] for name, values in history.history.items()}


def pair(hints=(), loss=None, mask=True, **compile_arguments):
    student, teacher = tagger(4, mask), tagger(16, mask)
    distiller = Distiller(student=student, teacher=teacher, hints=hints)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        loss=loss or FunctionMatching(),
        metrics=[TeacherAgreement(), TeacherDivergence(), "accuracy"],
        weighted_metrics=[TeacherAgreement(name="weighed")],
        **compile_arguments,
    )
    return student, teacher, distiller


@pytest.mark.parametrize("run", [evaluated, trained])
def test_padding_counts_nowhere(run):
    x, y, mask = tokens()
    student, teacher, distiller = pair(hints=[Hint("hidden", "hidden")])
    logs = run(distiller, x, y)
    errors = (feature(teacher, x) - feature(student, x)) ** 2
    soft = divergences(outputs(teacher, x), outputs(student, x))
    same = outputs(teacher, x).argmax(-1) == outputs(student, x).argmax(-1)
    right = y == outputs(student, x).argmax(-1)
    for name, values in {
        "hint_loss": errors.mean(-1),
        "soft_loss": soft,
        "teacher_agreement": same,
        "teacher_divergence": soft,
        "weighed": same,
        "accuracy": right,
    }.items():
        assert abs(logs[name] - values[mask].mean()) < 1e-5, name
        # Padding would be seen.
        assert abs(values.mean() - values[mask].mean()) > 1e-4, name


WEIGHTS = {
    "per sample": (BATCH,),
    "per sample, with an axis": (BATCH, 1),
    "per token": (BATCH, PLACES),
    "per token, with an axis": (BATCH, PLACES, 1),
}


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("shape", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_count_where_they_belong(shape, mask):
    x, y, valid = tokens()
    if not mask:
        valid = np.ones_like(valid)
    weights = np.random.default_rng(1).uniform(size=shape).astype("float32")
    student, teacher, distiller = pair(
        [Hint("hidden", "hidden")], ClassicKD(0.5), mask
    )
    logs = evaluated(distiller, x, y, sample_weight=weights)
    full = np.broadcast_to(weights.reshape(BATCH, -1), (BATCH, PLACES))
    errors = ((feature(teacher, x) - feature(student, x)) ** 2).mean(-1)
    student_logits = outputs(student, x)
    cross_entropy = -np.log(
        np.take_along_axis(softmax(student_logits), y[..., None], -1)[..., 0]
    )
    same = outputs(teacher, x).argmax(-1) == student_logits.argmax(-1)

    def mean(values):
        # As Keras: the sum over the number of places that count.
        return (values * full * valid).sum() / valid.sum()

    assert abs(logs["hint_loss"] - mean(errors)) < 1e-5
    assert abs(logs["label_loss"] - mean(cross_entropy)) < 1e-5
    weighed = (same * full * valid).sum() / (full * valid).sum()
    assert abs(logs["weighed"] - weighed) < 1e-5


def segmenter(width, strides=1):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, strides=strides, padding="same", name="hidden")(
        inputs
    )
    if strides > 1:
        x = layers.UpSampling2D(strides)(x)
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1)(x))


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 8, 8), (8, 8, 8, 1)])
@pytest.mark.parametrize("strides", [1, 2])
def test_weights_of_pixels(shape, strides):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(8, 8, 8, 1)).astype("float32")
    weights = generator.uniform(size=shape).astype("float32")
    student, teacher = segmenter(3, strides), segmenter(3, strides)
    distiller = Distiller(
        student=student, teacher=teacher, hints=[Hint("hidden", "hidden")]
    )
    distiller.compile(
        "sgd", FunctionMatching(), weighted_metrics=[TeacherAgreement()]
    )
    logs = evaluated(distiller, x, sample_weight=weights)
    soft = divergences(outputs(teacher, x), outputs(student, x))
    same = outputs(teacher, x).argmax(-1) == outputs(student, x).argmax(-1)
    pixels = weights.reshape(8, *(shape[1:3] if len(shape) > 2 else (1, 1)))
    full = np.broadcast_to(pixels, (8, 8, 8))
    assert abs(logs["soft_loss"] - (soft * full).mean()) < 1e-5
    agreement = (same * full).sum() / full.sum()
    assert abs(logs["teacher_agreement"] - agreement) < 1e-5
    if strides == 1 or len(shape) < 3:
        errors = (feature(teacher, x) - feature(student, x)) ** 2
        places = full[:, ::strides, ::strides]
        expected = (errors.mean(-1) * places).mean()
        assert abs(logs["hint_loss"] - expected) < 1e-5


def test_weights_that_fit_nothing():
    x, y, _ = tokens()
    *_, distiller = pair()
    with pytest.raises(ValueError, match=r"one value per sample or per place"):
        evaluated(distiller, x, y, sample_weight=np.ones((BATCH, 3), "float32"))
