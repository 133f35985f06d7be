"""Data of any kind: the right loss, or an error of this library.

The models are linear, so NumPy computes their outputs and losses in float64.
`run_eagerly` saves a compilation for each shape.
"""

import functools

import hypothesis
import keras
import numpy as np
import pytest
from common import BACKEND
from common import examples
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from hypothesis import strategies as st
from keras import layers
from keras import ops
from reference import losses as reference

from keras_distill import BinaryKD
from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import ValueMatching
from keras_distill import record_teacher

pytestmark = pytest.mark.any_backend

SHAPES = [(3,), (1, 1, 1)]
CLASSES = [2, 5]


def linear(shape, classes, seed=0):
    model = keras.Sequential(
        [keras.Input(shape), layers.Flatten(), layers.Dense(classes)]
    )
    generator = np.random.default_rng([seed, classes])
    model.set_weights(
        [generator.normal(size=w.shape) for w in model.get_weights()]
    )
    return model


def outputs_of(model, x):
    """Return the outputs of a linear model in float64."""
    kernel, bias = (np.float64(w) for w in model.get_weights())
    return np.float64(x).reshape(len(x), -1) @ kernel + bias


def distiller_of(*arguments):
    distiller = compiled_distiller(*arguments)
    distiller.reset_metrics()  # Keras 3.14 goes on with the last batch's.
    return distiller


@functools.cache
def compiled_distiller(shape, classes, loss, rate=0.0):
    distiller = Distiller(
        student=linear(shape, classes, 1), teacher=linear(shape, classes, 2)
    )
    distiller.compile(keras.optimizers.SGD(rate), loss, run_eagerly=True)
    return distiller


def expected_loss(distiller, x, y, rows):
    """Return the mean of `rows(label, teacher, student)` over a batch."""
    teacher = outputs_of(distiller.teacher, x)
    student = outputs_of(distiller.student, x)
    return np.mean([rows(*each) for each in zip(y, teacher, student)])


SOFT, KD = FunctionMatching(2.0), ClassicKD(0.5, 2.0)
ROWS = {
    SOFT: lambda y, t, s: reference.function_matching(t, s, 2.0),
    KD: lambda y, t, s: reference.classic_kd(y, t, s, 0.5, 2.0),
}
PIXELS = {
    "uint8": lambda g, shape: g.integers(0, 4, shape),
    "int32": lambda g, shape: g.integers(-2, 3, shape),
    "bool": lambda g, shape: g.integers(0, 2, shape),
    "float16": lambda g, shape: g.normal(size=shape),
    "float32": lambda g, shape: g.normal(size=shape),
    "float64": lambda g, shape: g.normal(size=shape),
}


@hypothesis.given(
    shape=st.sampled_from(SHAPES),
    size=st.sampled_from([1, 3]),
    dtype=st.sampled_from([*PIXELS]),
    constant=st.booleans(),
    loss=st.sampled_from([SOFT, KD]),
    classes=st.sampled_from(CLASSES),
    label_dtype=st.sampled_from(["uint8", "int32", "int64", "float32"]),
    one_hot=st.booleans(),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=examples(150))
def test_batches_of_all_kinds_have_the_right_loss(
    shape, size, dtype, constant, loss, classes, label_dtype, one_hot, seed
):
    generator = np.random.default_rng(seed)
    x = PIXELS[dtype](generator, (size, *shape)).astype(dtype)
    if constant:
        x[:] = x.flat[0]
    y = generator.integers(0, classes, size)
    labels = np.eye(classes)[y] if one_hot else y
    distiller = distiller_of(shape, classes, loss)
    value = distiller.train_on_batch(x, labels.astype(label_dtype))[0]
    expected = expected_loss(distiller, x, y, ROWS[loss])
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


LABELS = {
    "nan": (np.nan, False),
    "infinite": (np.inf, False),
    "negative": (-1, False),
    "too large": (5, False),
    "a fraction": (0.5, False),
    "nan in one-hot": (np.nan, True),
    "twice in one-hot": (1.0, True),
    "negative in one-hot": (-1.0, True),
}


@hypothesis.given(
    kind=st.sampled_from([*LABELS]),
    row=st.integers(0, 2),
    method=st.sampled_from(["train_on_batch", "test_on_batch"]),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=examples(40))
def test_labels_that_cannot_be_are_refused(kind, row, method, seed):
    value, one_hot = LABELS[kind]
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(3, 3)), generator.integers(0, 4, 3)
    labels = np.float32(np.eye(5)[y] if one_hot else y)
    labels[row] = np.where(labels[row] == 1, 1, value) if one_hot else value
    distiller = distiller_of((3,), 5, KD)
    kinds, message = ValueError, "1 invalid labels in batch 0"
    if not one_hot and BACKEND != "jax":
        # TensorFlow and PyTorch refuse some class indices by themselves.
        kinds, message = Exception, f"{message}|label value|out of bounds"
    with pytest.raises(kinds, match=message):
        getattr(distiller, method)(np.float32(x), labels)
    distiller.student.set_weights(linear((3,), 5, 1).get_weights())


@hypothesis.given(
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    shape=st.sampled_from(SHAPES),
    batch=st.integers(0, 3),
    row=st.integers(0, 1),
    place=st.integers(0, 2),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=examples(60))
def test_pixels_that_are_not_finite_are_refused(
    value, shape, batch, row, place, training, seed
):
    x = np.float32(np.random.default_rng(seed).normal(size=(8, *shape)))
    x[2 * batch + row].flat[place % x[0].size] = value
    distiller = distiller_of(shape, 5, SOFT)
    before = weights_of(distiller.student)
    with pytest.raises(
        ValueError, match=f"infinity for 1 rows of batch {batch} of this epoch"
    ):
        if training:
            distiller.fit(x, batch_size=2, shuffle=False, verbose=0)
        else:
            distiller.evaluate(x, batch_size=2, verbose=0)
    if not training:
        assert same_weights(weights_of(distiller.student), before)
    # The learning rate is 0, but 0 times NaN is NaN.
    distiller.student.set_weights(linear(shape, 5, 1).get_weights())


@hypothesis.given(
    value=st.sampled_from([np.nan, np.inf]),
    batch=st.integers(0, 3),
    where=st.sampled_from(["labels", "weights", "student"]),
)
@hypothesis.settings(max_examples=examples(24))
def test_a_loss_that_is_not_finite_is_reported(value, batch, where):
    """What no teacher and no check of classes can find."""
    x, _ = vectors(8, inputs=3)
    y, weights = np.zeros((8, 5), "float32"), np.ones(8, "float32")
    damaged = {"labels": y, "weights": weights, "student": x}[where]
    damaged[2 * batch] = value
    teacher = linear((3,), 5, 2)
    distiller = Distiller(
        student=linear((3,), 5),
        teacher=teacher,
        teacher_preprocessing=lambda x: ops.zeros_like(x),
    )
    distiller.compile("sgd", ValueMatching(alpha=0.5), run_eagerly=True)
    message = f"The loss must be finite.*NaN or infinity in batch {batch} of"
    with pytest.raises(ValueError, match=message):
        distiller.fit(x, y, 2, verbose=0, shuffle=False, sample_weight=weights)


@hypothesis.given(
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    batch=st.integers(0, 3),
    rows=st.integers(1, 2),
)
@hypothesis.settings(max_examples=examples(24))
def test_a_teacher_that_is_not_finite_on_one_batch(value, batch, rows):
    """It is reported, and the student has learned from the other rows only."""
    x, _ = vectors(8, inputs=3)
    x[:, 0] = 0
    x[2 * batch : 2 * batch + rows, 0] = 1
    model = linear((3,), 5, 2)

    def teacher(inputs):
        return ops.where(inputs[:, :1] > 0.5, value, model(inputs))

    student = linear((3,), 5, 1)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", FunctionMatching(), run_eagerly=True)
    with pytest.raises(ValueError, match=f"for {rows} rows of batch {batch}"):
        distiller.fit(x, batch_size=2, shuffle=False, verbose=0)
    assert all(np.isfinite(w).all() for w in weights_of(student))


@hypothesis.given(
    size=st.sampled_from([1, 2]),
    alpha=st.floats(0.01, 10),
    pixels=st.sampled_from([(1, 1, 1), (2, 3, 1)]),
    constant=st.booleans(),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=examples(20))
def test_mixed_batches_down_to_one(size, alpha, pixels, constant, seed):
    """A batch of one is mixed with itself, so it stays as it is."""
    generator = np.random.default_rng(seed)
    x = np.float32(generator.normal(size=(size, *pixels)))
    if constant:
        x[:] = 0.25
    labels = np.float32(np.eye(5)[generator.integers(0, 5, size)])
    augment = ConsistentAugment([MixUp(alpha)], seed=seed)
    distiller = Distiller(
        student=linear(pixels, 5, 1), teacher=linear(pixels, 5), augment=augment
    )
    distiller.compile(keras.optimizers.SGD(0.0), KD, run_eagerly=True)
    value = distiller.train_on_batch(x, labels)[0]
    data = {"images": x, "labels": labels}
    if size > 1 and not constant:
        again = ConsistentAugment([MixUp(alpha)], seed=seed)
        data = to_numpy(again(data, training=True))
    log_q = [
        reference.log_softmax(s)
        for s in outputs_of(distiller.student, data["images"])
    ]
    soft = expected_loss(
        distiller,
        data["images"],
        labels.argmax(-1),
        lambda y, t, s: reference.classic_kd(y, t, s, 1.0, 2.0),
    )
    if constant and size > 1:
        assert np.isfinite(value)  # the labels are mixed, the images are not
        return
    hard = -np.mean(np.sum(data["labels"] * np.float64(log_q), -1))
    np.testing.assert_allclose(value, (soft + hard) / 2, rtol=1e-4)


@hypothesis.given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=examples(25))
def test_batches_of_unequal_sizes_count_by_their_size(sizes, seed):
    generator = np.random.default_rng(seed)
    x = np.float32(generator.normal(size=(sum(sizes), 3)))
    y = generator.integers(0, 5, sum(sizes))
    ends = np.cumsum(sizes)[:-1]
    batches = [*zip(np.split(x, ends), np.split(y, ends))]
    distiller = distiller_of((3,), 5, KD)
    logs = distiller.evaluate(
        (batch for batch in batches),
        steps=len(batches),
        verbose=0,
        return_dict=True,
    )
    expected = expected_loss(distiller, x, y, ROWS[KD])
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4, atol=1e-5)


class Broken(Exception):
    """What a data source raises."""


@hypothesis.given(
    good=st.integers(0, 4),
    kind=st.sampled_from(["generator", "PyDataset"]),
    training=st.booleans(),
)
@hypothesis.settings(max_examples=examples(20))
def test_a_source_that_raises_midway(good, kind, training):
    """Its error arrives, and the student has trained on what came before."""
    x, y = vectors(2 * 5, inputs=3)

    def batch(index):
        if index == good:
            raise Broken("no disk")
        return x[2 * index : 2 * index + 2], y[2 * index : 2 * index + 2]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return batch(index)

    source = Batches()
    if kind == "generator":
        source = (batch(index) for index in range(5))
    distiller = distiller_of((3,), 5, KD)
    before = weights_of(distiller.student)
    with pytest.raises(Exception, match="no disk"):
        if training:
            distiller.fit(source, shuffle=False, verbose=0)
        else:
            distiller.evaluate(source, verbose=0)
    assert same_weights(weights_of(distiller.student), before)
    distiller.reset_metrics()
    value = distiller.test_on_batch(x, y)[0]
    expected = expected_loss(distiller, x, y, ROWS[KD])
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@hypothesis.given(
    batches=st.integers(1, 3), epochs=st.integers(2, 3), size=st.integers(1, 2)
)
@hypothesis.settings(max_examples=examples(12))
def test_a_source_that_ends_early(batches, epochs, size):
    """Keras warns, and the epochs that had data have the right loss."""
    x, y = vectors(batches * size, inputs=3)
    source = ((x[i::batches], y[i::batches]) for i in range(batches))
    distiller = distiller_of((3,), 5, KD)
    with pytest.warns(UserWarning, match="ran out of data"):
        logs = distiller.fit(
            source,
            steps_per_epoch=batches + 1,
            epochs=epochs,
            shuffle=False,
            verbose=0,
        ).history
    expected = expected_loss(distiller, x, y, ROWS[KD])
    np.testing.assert_allclose(logs["loss"][0], expected, rtol=1e-4)


def classic_kd(label, teacher, student):
    """As `reference.classic_kd`, in a time that grows with the classes."""

    def log_softmax(logits):
        return logits - np.logaddexp.reduce(logits)

    soft = np.exp(log_softmax(teacher / 2.0)) @ log_softmax(student / 2.0)
    return -0.5 * 4.0 * soft - 0.5 * log_softmax(student)[label]


@pytest.mark.parametrize("classes", [1, 20_000])
def test_one_and_twenty_thousand_classes(classes):
    x, _ = vectors(2, inputs=3)
    if classes == 1:
        with pytest.raises(ValueError, match="BinaryKD"):
            distiller_of((3,), classes, SOFT)
        distiller = distiller_of((3,), classes, BinaryKD(0.5, 2.0))
        labels = np.float32([[0], [1]])
        expected = expected_loss(
            distiller,
            x,
            labels,
            lambda y, t, s: reference.binary_kd(y, t, s, 0.5, 2.0),
        )
    else:
        distiller = distiller_of((3,), classes, KD)
        labels = np.int32([0, classes - 1])
        expected = expected_loss(distiller, x, labels, classic_kd)
    value = distiller.train_on_batch(x, labels)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-4)


class CastTo(layers.Layer):
    """A layer that changes the dtype."""

    def __init__(self, to):
        super().__init__()
        self.to = to

    def call(self, inputs):
        return ops.cast(inputs, self.to)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "bool"])
def test_a_model_that_changes_the_dtype(role, dtype):
    x, y = vectors(4, inputs=3)
    models = {"student": linear((3,), 5, 1), "teacher": linear((3,), 5, 2)}
    plain = Distiller(**models)
    plain.compile("sgd", KD, run_eagerly=True)
    cast = keras.Sequential([keras.Input((3,)), models[role], CastTo(dtype)])
    distiller = Distiller(**{**models, role: cast})
    distiller.compile("sgd", KD, run_eagerly=True)
    if dtype in ("int32", "bool"):
        with pytest.raises((TypeError, ValueError), match=f"{dtype}"):
            distiller.test_on_batch(x, y)
    else:
        value = distiller.test_on_batch(x, y)[0]
        np.testing.assert_allclose(
            value, plain.test_on_batch(x, y)[0], rtol=0.02
        )


@pytest.mark.parametrize("value", [0.0, 255.0, -3.5])
def test_a_constant_image_stays_constant_in_a_crop(value):
    x = np.full((3, 1, 1, 1), value, "float32")
    augment = ConsistentAugment([InceptionCrop(2, 2)], seed=0)
    distiller = Distiller(
        student=linear((2, 2, 1), 5, 1),
        teacher=linear((2, 2, 1), 5, 2),
        augment=augment,
    )
    distiller.compile(keras.optimizers.SGD(0.0), SOFT, run_eagerly=True)
    loss = distiller.train_on_batch(x)[0]
    view = np.full((3, 2, 2, 1), value)
    expected = expected_loss(distiller, view, range(3), ROWS[SOFT])
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ranks", [(0, 1), (1, 3), (3, 1)])
def test_data_of_another_rank_is_refused(ranks):
    shape, given = [(3, 3, 1)[:rank] for rank in ranks]
    distiller = distiller_of((3,) if not shape else shape, 5, SOFT)
    other = np.zeros((2, *given[:-1], 7)) if given else np.zeros(2)
    with pytest.raises((TypeError, ValueError)):
        distiller.train_on_batch(other)


def test_a_recording_of_data_that_fails_is_whole_and_goes_on(tmp_path):
    """What was recorded before the error is neither lost nor damaged."""
    x, _ = vectors(12, inputs=3)
    teacher = mlp(8, inputs=3)

    class Failing:
        fails = True

        def __iter__(self):
            for index in range(3):
                if index == 2 and self.fails:
                    raise Broken("no disk")
                yield x[4 * index : 4 * index + 4]

    source = Failing()
    with pytest.raises(Broken):
        record_teacher(teacher, source, tmp_path, verbose=0)
    with pytest.raises(ValueError, match=r"no recording|not finished"):
        RecordedTeacher(tmp_path)
    source.fails = False
    recording = record_teacher(teacher, source, tmp_path, verbose=0)
    outputs = [
        recording.outputs_in(recording.rows(0, b))["output_0"] for b in range(3)
    ]
    np.testing.assert_allclose(
        np.concatenate(outputs), to_numpy(teacher(x)), atol=2e-3
    )
