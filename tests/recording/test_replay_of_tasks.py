"""Recordings of every task: a replayed run equals the run with the teacher."""

import json

import keras
import numpy as np
import pytest
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from keras import layers

from keras_distill import DIST
from keras_distill import BinaryKD
from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import TeacherAgreement
from keras_distill import TeacherDivergence
from keras_distill import ValueMatching
from keras_distill import record_teacher

pytestmark = pytest.mark.any_backend


def per_pixel(width=2, classes=3):
    """A network with outputs `(batch, 8, 8, classes)`."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, padding="same", activation="relu"),
            layers.Conv2D(classes, 1),
        ]
    )


def heads(units=4):
    inputs = keras.Input((6,))
    hidden = layers.Dense(units, "relu")(inputs)
    return keras.Model(
        inputs,
        {"kind": layers.Dense(5)(hidden), "box": layers.Dense(4)(hidden)},
    )


def logs_of(teacher, student, data, loss, augment=None, metrics=None, **fit):
    """Return the history of a run from fixed weights and fixed views."""
    keras.utils.set_random_seed(5)
    student = student()
    distiller = Distiller(student=student, teacher=teacher, augment=augment)
    distiller.compile(
        keras.optimizers.SGD(0.01),
        loss,
        metrics=metrics and metrics(),
        weighted_metrics=metrics and metrics(),
    )
    return distiller.fit(*data, batch_size=8, verbose=0, **fit).history


def assert_replayed_as_live(
    path, teacher, student, data, loss, views=None, recording=None, **fit
):
    def augment():
        return views and ConsistentAugment(views(), seed=2)

    live = logs_of(
        teacher, student, data, loss(), augment(), shuffle=False, **fit
    )
    options = {
        "seed": None,
        "storage_dtype": "float32",
        "batch_size": 8,
        "verbose": 0,
    }
    record_teacher(
        teacher,
        data[0],
        path,
        augment=augment(),
        epochs=fit.get("epochs", 1),
        **options,
        **(recording or {}),
    )
    replayed = logs_of(
        RecordedTeacher(path), student, data, loss(), augment(), **fit
    )
    assert set(live) == set(replayed)
    for name, values in live.items():
        np.testing.assert_allclose(
            replayed[name], values, rtol=1e-4, err_msg=name
        )


def metrics():
    return [TeacherAgreement(), TeacherDivergence()]


CHAINS = {
    "none": None,
    "geometry": lambda: [
        InceptionCrop(8, 8),
        layers.RandomFlip("horizontal"),
    ],
    "mixed": lambda: [InceptionCrop(8, 8), MixUp()],
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_pixels_and_their_labels_and_weights_follow_the_recorded_view(
    tmp_path, chain, weighted
):
    generator = np.random.default_rng(0)
    size = 8 if chain == "none" else 12
    x, _ = images(20, size=size, channels=3)
    y = generator.integers(0, 3, size=(20, size, size))
    weight = generator.uniform(0, 2, size=(20, size, size)).astype("float32")
    assert_replayed_as_live(
        tmp_path,
        per_pixel(6),
        per_pixel,
        (x, y),
        lambda: ClassicKD(alpha=0.5),
        views=CHAINS[chain],
        metrics=metrics,
        epochs=2,
        **({"sample_weight": weight} if weighted else {}),
    )


def test_a_replayed_pixel_network_is_right_about_its_own_labels(tmp_path):
    """Labels that a network predicts itself stay right under every view."""
    x, _ = images(16, size=8, channels=3)
    teacher = per_pixel(6)
    y = teacher.predict(x, verbose=0).argmax(-1)
    flip = ConsistentAugment(layers.RandomFlip(), seed=1)
    pointwise = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Dense(9, "relu"),
            layers.Dense(3),
        ]
    )
    y = pointwise.predict(x, verbose=0).argmax(-1)
    options = {"augment": flip, "batch_size": 8, "verbose": 0}
    record_teacher(pointwise, x, tmp_path, epochs=3, **options)
    student = keras.models.clone_model(pointwise)
    student.set_weights(pointwise.get_weights())
    distiller = Distiller(
        student=student, teacher=RecordedTeacher(tmp_path), augment=flip
    )
    distiller.compile(
        keras.optimizers.SGD(0.0), ClassicKD(), metrics=["accuracy"]
    )
    logs = distiller.fit(x, y, epochs=3, verbose=0).history
    np.testing.assert_allclose(logs["accuracy"], 1.0)


def test_class_weights(tmp_path):
    assert_replayed_as_live(
        tmp_path,
        mlp(16),
        mlp,
        vectors(20),
        lambda: ClassicKD(alpha=0.5),
        class_weight={index: 0.5 + index for index in range(5)},
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_dicts_of_outputs_labels_and_weights(tmp_path, weighted):
    x, y = vectors(20)
    box = np.random.default_rng(2).normal(size=(20, 4)).astype("float32")
    weight = {
        "kind": np.linspace(0, 2, 20).astype("float32"),
        "box": np.linspace(2, 0, 20).astype("float32"),
    }
    assert_replayed_as_live(
        tmp_path,
        heads(16),
        heads,
        (x, {"kind": y, "box": box}),
        lambda: {
            "kind": ClassicKD() + 0.5 * DIST(),
            "box": ValueMatching(alpha=0.5, label_loss="mse"),
        },
        epochs=2,
        **({"sample_weight": weight} if weighted else {}),
    )


ENSEMBLES = {
    "labels, logits": (
        lambda units: mlp(units),
        lambda: BinaryKD(alpha=1.0),
        {"predicts": "labels"},
    ),
    "labels, probabilities": (
        lambda units: mlp(units, activation="sigmoid"),
        lambda: BinaryKD(alpha=1.0, from_logits=False),
        {"predicts": "labels", "from_logits": False},
    ),
    "values": (
        lambda units: mlp(units),
        lambda: ValueMatching(),
        {"predicts": "values"},
    ),
    "classes, probabilities": (
        lambda units: mlp(units, activation="softmax"),
        lambda: FunctionMatching(from_logits=False),
        {"from_logits": False},
    ),
}


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_ensembles_are_averaged_as_what_they_predict(tmp_path, kind):
    x, _ = vectors(20)
    network, loss, options = ENSEMBLES[kind]
    members = [network(16), network(8), network(12)]
    assert_replayed_as_live(
        tmp_path,
        members,
        lambda: network(4),
        (x,),
        loss,
        recording=options,
        epochs=2,
    )
    recording = RecordedTeacher(tmp_path)
    recorded = recording.outputs_in(recording.rows(0, 0))["output_0"]
    outputs = [
        member.predict(x[:8], verbose=0).astype("float64") for member in members
    ]
    if kind == "labels, logits":
        mean = np.mean([1 / (1 + np.exp(-each)) for each in outputs], axis=0)
        expected = np.log(mean) - np.log1p(-mean)
    else:
        expected = np.mean(outputs, axis=0)
    np.testing.assert_allclose(recorded, expected, rtol=1e-4, atol=1e-6)


def test_values_are_kept_in_full_precision_and_classes_in_half(tmp_path):
    x, _ = vectors(8)
    tiny = np.arange(40, dtype="float32").reshape(8, 5) * 1e-9
    record_teacher(
        lambda x: tiny, x, tmp_path, predicts="values", seed=None, verbose=0
    )
    recording = RecordedTeacher(tmp_path)
    np.testing.assert_array_equal(
        recording.outputs_in(recording.rows(0, 0))["output_0"], tiny
    )
    for predicts in ("classes", "labels"):
        path = tmp_path / predicts
        record_teacher(mlp(), x, path, predicts=predicts, verbose=0)
        assert RecordedTeacher(path).manifest["storage_dtype"] == "float16"


def test_what_was_averaged_as_something_else_is_refused(tmp_path):
    x, _ = vectors(20)
    members = [mlp(16), mlp(8)]

    def replay(path, loss):
        distiller = Distiller(student=mlp(), teacher=RecordedTeacher(path))
        distiller.compile("sgd", loss)
        distiller.fit(x, verbose=0)

    record_teacher(members, x, tmp_path / "classes", verbose=0)
    record_teacher(
        members, x, tmp_path / "values", predicts="values", verbose=0
    )
    record_teacher(members[0], x, tmp_path / "one", verbose=0)
    record_teacher(members[0], x, tmp_path / "top", top_k=2, verbose=0)
    message = "recorded with predicts='classes'.*`predicts='values'`"
    with pytest.raises(ValueError, match=message):
        replay(tmp_path / "classes", ValueMatching())
    with pytest.raises(ValueError, match="Received: BinaryKD, which"):
        replay(tmp_path / "top", BinaryKD(alpha=1.0))
    with pytest.raises(ValueError, match=r"predicts='values'.*FunctionMatch"):
        replay(tmp_path / "values", FunctionMatching())
    # The outputs of one teacher are recorded unchanged.
    replay(tmp_path / "one", ValueMatching())
    replay(tmp_path / "one", BinaryKD(alpha=1.0))


def test_recordings_from_before_are_of_classes(tmp_path):
    x, _ = vectors(20)
    teacher = mlp(16)
    record_teacher(teacher, x, tmp_path, verbose=0)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["predicts"], manifest["endings"]
    del manifest["checksum"], manifest["shards"][0]["checksum"]
    file.write_text(json.dumps(manifest))
    assert RecordedTeacher(tmp_path).manifest["predicts"] == "classes"
    record_teacher(teacher, x, tmp_path, epochs=2, verbose=0)
    distiller = Distiller(student=mlp(), teacher=RecordedTeacher(tmp_path))
    distiller.compile("sgd", FunctionMatching())
    distiller.fit(x, verbose=0)
    with pytest.raises(ValueError, match="predicts is classes"):
        record_teacher(teacher, x, tmp_path, predicts="values", verbose=0)


def test_what_is_refused_live_is_refused_in_replay(tmp_path):
    """What a teacher ends in is in the recording."""
    x, _ = vectors(8)
    teacher = mlp(16, activation="sigmoid", name="big")
    record_teacher(teacher, x, tmp_path, verbose=0)
    message = "the teacher 'big' ends in the layer 'dense.*BinaryKD"
    for given in (teacher, RecordedTeacher(tmp_path)):
        distiller = Distiller(student=mlp(), teacher=given)
        with pytest.raises(ValueError, match=message):
            distiller.compile("sgd", FunctionMatching())


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("softmax", {}),
        (None, {"from_logits": False}),
        (None, {"from_logits": False, "predicts": "labels"}),
        ("sigmoid", {"predicts": "labels"}),
    ],
)
def test_outputs_that_contradict_the_arguments_are_not_recorded(
    tmp_path, activation, options
):
    x, _ = vectors(32)
    message = r"Received: predicts='.*from_logits=.*Use `from_logits="
    with pytest.raises(ValueError, match=message):
        record_teacher(
            mlp(16, activation=activation), x, tmp_path, verbose=0, **options
        )
    assert not list(tmp_path.glob("shard*"))


def test_arguments_that_contradict_each_other(tmp_path):
    x, _ = vectors(8)
    for predicts in ("labels", "values"):
        with pytest.raises(ValueError, match="`top_k` keeps the most probable"):
            record_teacher(mlp(), x, tmp_path, predicts=predicts, top_k=2)
    with pytest.raises(ValueError, match="predicts='boxes'"):
        record_teacher(mlp(), x, tmp_path, predicts="boxes")
    with pytest.raises(ValueError, match="dicts of outputs to have strings"):
        record_teacher(lambda x: {0: x, 1: x}, x, tmp_path, verbose=0)


def test_the_recorded_pixels_are_those_of_the_view(tmp_path):
    x, _ = images(8, size=12, channels=3)
    teacher = per_pixel(4)
    augment = ConsistentAugment(CHAINS["geometry"](), seed=1)
    record_teacher(
        teacher,
        x,
        tmp_path,
        augment=augment,
        storage_dtype="float32",
        verbose=0,
    )
    recording = RecordedTeacher(tmp_path)
    rows = recording.rows(0, 0)
    view, _ = augment.draw(x[rows["sample"]], recording.drawn_in(rows))
    np.testing.assert_allclose(
        recording.outputs_in(rows)["output_0"],
        to_numpy(teacher(view, training=False)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("arrays", [True, False])
def test_labels_or_weights_of_another_length(tmp_path, arrays):
    x, y = vectors(16)
    data = x if arrays else [x[:8], x[8:]]
    record_teacher(mlp(16), data, tmp_path, batch_size=8, verbose=0)
    distiller = Distiller(student=mlp(), teacher=RecordedTeacher(tmp_path))
    distiller.compile("sgd", ClassicKD())
    message = (
        "must have the same number of rows"
        if arrays
        else "its labels and weights"
    )
    for labels, weights in ((y[:8], None), (y, np.ones(32))):
        with pytest.raises(ValueError, match=message):
            distiller.fit(data, labels, sample_weight=weights, verbose=0)
