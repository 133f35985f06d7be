"""`shrink`: the budget holds for the file, and validation data choose it.

Most of it is arithmetic and files, so it runs on one backend. What trains and
resumes runs on all.
"""

import pathlib
import re

import keras
import numpy as np
import pytest
from common import CLASSES
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers

import keras_distill
from keras_distill import ClassicKD
from keras_distill import MixUp
from keras_distill import ValueMatching
from keras_distill import _backend
from keras_distill import compare
from keras_distill import record_teacher
from keras_distill import shrink
from keras_distill.compression import export_litert
from keras_distill.compression import unpack
from keras_distill.compression.litert._interpreter import run_file
from keras_distill.shrinking import _candidates
from keras_distill.shrinking import _shrink
from keras_distill.shrinking import _sparse
from keras_distill.shrinking._candidates import Way

pytestmark = pytest.mark.any_backend

WAYS = ["uniform", "global", "iterative"]


@pytest.fixture
def run(tmp_path):
    """Return a function that shrinks a model with two epochs of training."""

    def run(model, x, y, *, directory="shrunk", **arguments):
        defaults = {"epochs": 2, "verbose": 0, "precision": "packed"}
        if "train" not in arguments:
            arguments["train"] = x
        return shrink(
            model,
            validation=(x, y),
            directory=tmp_path / directory,
            **{**defaults, **arguments},
        )

    return run


def network(size=8):
    """A residual network, whose file in int8 has 20 kilobytes."""
    inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(32, 3, 2, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    x = layers.Add()([x, layers.ReLU()(layers.BatchNormalization()(y))])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


@pytest.mark.one_backend("torch")
def test_the_file_that_was_measured_is_within_the_budget(run, tmp_path):
    x, y = images(64)
    x = x / 255
    result = run(network(), x, y, precision="int8", epochs=4, max_bytes=12_000)
    figures = result.comparison.to_dict()
    assert list(figures) == ["original", *WAYS]
    assert figures["original"]["litert_int8_bytes"] > 12_000
    for name in WAYS:
        assert 10_000 < figures[name]["litert_int8_bytes"] <= 12_000
    result.export(tmp_path / "student.tflite")
    content = (tmp_path / "student.tflite").read_bytes()
    assert len(content) == figures[result.name]["litert_int8_bytes"]
    (name,) = (tensor.name for tensor in result.model.inputs)
    (outputs,) = run_file(content, [name], [x])
    accuracy = np.mean(outputs.argmax(-1) == y)
    assert accuracy == figures[result.name]["litert_int8_accuracy"]
    assert accuracy == max(figures[n]["litert_int8_accuracy"] for n in WAYS)
    # The network that is returned is the one in the file.
    export_litert(result.model, tmp_path / "again.tflite", "int8")
    assert len((tmp_path / "again.tflite").read_bytes()) == len(content)


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(
    "limit, key",
    [
        ("max_macs", "macs"),
        ("max_parameters", "parameters"),
        ("max_bytes", "packed_bytes"),
    ],
)
def test_each_candidate_takes_no_more_than_the_limit(limit, key, run):
    model, (x, y) = mlp(64), vectors(32)
    before = compare([model], litert=()).to_dict()[model.name]
    value = int(0.6 * before[key])
    result = run(model, x, y, **{limit: value})
    figures = result.comparison.to_dict()
    for name in WAYS:
        assert 0.5 * before[key] < figures[name][key] <= value
    assert not any("litert" in key for key in figures["uniform"])


@pytest.mark.one_backend("torch")
def test_a_packed_budget_may_keep_all_channels(run, tmp_path):
    """Zeros and shared values take few bytes, and no other costs."""
    model, (x, y) = trained(64)
    macs = compare([model], litert=()).to_dict()[model.name]["macs"]
    limits = {"max_bytes": 450, "max_macs": macs}
    result = run(model, x, y, **limits, epochs=8, learning_rate=0.02)
    figures = result.comparison.to_dict()
    assert list(figures) == ["original", *WAYS, "sparse"]
    sparse = figures["sparse"]
    assert 400 < sparse["packed_bytes"] <= 450
    assert sparse["nonzero_parameters"] < 0.8 * sparse["parameters"]
    assert sparse["macs"] == macs and sparse["agreement"] > 0.85
    again = unpack(tmp_path / "shrunk/sparse/packed")
    for weight in again.weights:
        values = to_numpy(weight)
        assert len(np.unique(values)) <= 16 + 1
        np.testing.assert_array_equal(values, values.astype("float16"))
    # The zeros that it has stay, although the budget allows more weights.
    more = run(again, x, y, max_bytes=700, directory="more")
    more = more.comparison.to_dict()["sparse"]
    assert more["nonzero_parameters"] <= sparse["nonzero_parameters"]


@pytest.mark.one_backend("torch")
def test_a_narrow_network_takes_the_place_of_most_zeros(run):
    model, (x, y) = trained(256)
    options = {"max_bytes": 400, "epochs": 8, "learning_rate": 0.02}
    result = run(model, x, y, **options)
    figures = result.comparison.to_dict()
    sparse, narrow = figures["sparse"], figures["narrow-sparse"]
    assert 350 < narrow["packed_bytes"] <= 400
    assert narrow["parameters"] < 0.7 * sparse["parameters"]
    shares = [
        f["nonzero_parameters"] / f["parameters"] for f in (sparse, narrow)
    ]
    assert shares[0] < 0.15 < shares[1]
    assert narrow["agreement"] > 0.85
    # A run that was stopped after its last step finds everything again.
    again = run(model, x, y, **options).comparison.to_dict()
    assert again["narrow-sparse"]["agreement"] == narrow["agreement"]


@pytest.mark.one_backend("torch")
def test_budgets_that_zeros_cannot_reach(run, monkeypatch):
    (x, y), model = vectors(32), mlp(64)
    result = run(model, x, y, max_bytes=450, max_macs=600)
    assert "sparse" not in result.comparison.to_dict()
    # So at most half of the weights are zeros.
    monkeypatch.setattr(_sparse, "_PRECISION", 0.5)
    result = run(model, x, y, max_bytes=400, directory="b")
    assert "sparse" not in result.comparison.to_dict()


# The interpreters are the same on every backend.
@pytest.mark.one_backend("torch")
def test_arena_and_milliseconds(run, monkeypatch):
    pytest.importorskip("tflite_micro", reason="the extra `micro`")
    monkeypatch.setattr(_candidates, "WAYS", {"global": Way("global", 1)})
    model, (x, y) = network(16), images(16, 16)
    arguments = {"precision": "int8", "epochs": 1}
    first = run(model, x, y, max_ms=1000.0, **arguments, directory="a")
    before = first.comparison.to_dict()
    assert before["global"]["macs"] == before["original"]["macs"]
    arena = before["original"]["litert_int8_arena_bytes"]
    limit = int(0.8 * arena)
    result = run(model, x, y, max_arena_bytes=limit, **arguments)
    figures = result.comparison.to_dict()["global"]
    assert 0.6 * arena < figures["litert_int8_arena_bytes"] <= limit
    with pytest.raises(ValueError, match="smallest network has"):
        run(model, x, y, max_ms=1e-9, **arguments, directory="b")


@pytest.mark.one_backend("torch")
def test_all_limits_hold_at_once(run):
    x, y = vectors(32)
    result = run(mlp(64), x, y, max_macs=400, max_parameters=300)
    figures = result.comparison.to_dict()[result.name]
    assert figures["macs"] <= 400 and figures["parameters"] <= 300
    result = run(mlp(64), x, y, max_macs=400, max_parameters=30, directory="b")
    assert 20 < result.model.count_params() <= 30


@pytest.mark.one_backend("torch")
def test_a_budget_that_cannot_be_reached_says_what_can(run):
    class Untouched(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise AssertionError("The training began.")

    (x, y), model = vectors(32), mlp(64)
    with pytest.raises(ValueError, match="smallest network has") as error:
        run(model, x, y, train=Untouched(), max_parameters=10)
    (smallest,) = re.findall(r"has ([0-9]+) parameters", str(error.value))
    result = run(model, x, y, max_parameters=int(smallest), directory="b")
    assert result.model.count_params() == int(smallest)


def learnable(count=256):
    """Points around the corners of a simplex, in order of their classes."""
    generator = np.random.default_rng(0)
    y = np.arange(count) * CLASSES // count
    x = 2 * np.eye(6)[y] + generator.normal(size=(count, 6))
    return x.astype("float32"), y


def trained(units):
    """Return a network and the data that it has learned."""
    model, (x, y) = mlp(units), learnable()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(x, y, epochs=10, verbose=0)
    return model, (x, y)


@pytest.mark.one_backend("torch")
def test_students_learn_from_the_teacher(run):
    model, (x, y) = trained(64)
    result = run(model, x, y, max_parameters=70, epochs=12, learning_rate=0.02)
    untrained = run(
        model, x, y, max_parameters=70, learning_rate=1e-9, directory="b"
    )
    figures = result.comparison.to_dict()
    for name in WAYS:
        before = untrained.comparison.to_dict()[name]["agreement"]
        assert figures[name]["agreement"] > max(before, 0.85)


@pytest.mark.one_backend("torch")
def test_statistics_are_those_of_the_smaller_network(run):
    """A few steps that change nothing follow."""
    x, y = images(64)
    x = x / 255
    result = run(network(), x, y, max_macs=40_000, learning_rate=1e-9)
    norm = next(
        layer
        for layer in result.model.layers
        if isinstance(layer, layers.BatchNormalization)
    )
    assert norm.momentum == 0.99
    inputs = to_numpy(keras.Model(result.model.input, norm.input)(x))
    mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
    np.testing.assert_allclose(to_numpy(norm.moving_mean), mean, atol=0.02)
    np.testing.assert_allclose(to_numpy(norm.moving_variance), variance, 0.1)


def test_labels_view_and_another_teacher(run):
    x, y = images(16)
    result = run(
        cnn(16),
        x,
        y,
        train=(x, y),
        teacher=[cnn(8), cnn(12)],
        augment=MixUp(),
        loss=ClassicKD(alpha=0.5),
        max_parameters=100,
    )
    assert result.model.count_params() <= 100


@pytest.mark.one_backend("torch")
def test_a_recording_teaches_all_candidates(run, tmp_path):
    (x, y), model = vectors(32), mlp(16)
    recording = record_teacher(
        model, x, tmp_path / "recording", epochs=2, verbose=0
    )
    result = run(model, x, y, teacher=recording, max_parameters=100)
    assert result.model.count_params() <= 100


@pytest.mark.one_backend("torch")
def test_other_tasks_have_losses_and_metrics(run):
    x, _ = vectors(64)
    y = x[:, :2].astype("float32")
    model = mlp(32, classes=2)
    arguments = {"loss": ValueMatching(), "max_parameters": 150}
    result = run(
        model, x, y, metrics=[keras.metrics.MeanAbsoluteError()], **arguments
    )
    figures = result.comparison.to_dict()
    errors = {name: figures[name]["mean_absolute_error"] for name in WAYS}
    assert errors[result.name] == min(errors.values())
    with pytest.raises(ValueError, match="Give `metrics`"):
        run(model, x, y, **arguments, directory="b")
    with pytest.raises(ValueError, match="is known whether a higher"):
        run(
            model,
            x,
            y,
            metrics={"error": lambda y, outputs: y - outputs},
            **arguments,
            directory="b",
        )


@pytest.mark.one_backend("torch")
def test_the_result_shows_itself(run, tmp_path):
    x, y = vectors(32)
    result = run(mlp(16), x, y, max_parameters=100)
    assert "uniform" in str(result) and "<table" in result._repr_html_()
    assert f"validation data: {result.name}" in str(result)
    result.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="a folder that exists"):
        result.export(tmp_path / "no" / "file")


class Killed(BaseException):
    pass


def fit_stopped_in(number):
    """Return a `fit` that is stopped after an epoch of a call."""
    original, count = keras.Model.fit, 0

    def stop(epoch, logs):
        if epoch == 1:
            raise Killed

    def fit(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            stopping = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
            kwargs["callbacks"] = [*kwargs["callbacks"], stopping]
        return original(self, *args, **kwargs)

    return fit


ON_PYTORCH = pytest.mark.one_backend("torch")


@pytest.mark.parametrize(
    "stops, limit",
    [
        ([4], {"max_parameters": 100}),
        pytest.param([1, 3], {"max_parameters": 100}, marks=ON_PYTORCH),
        pytest.param([6, 7], {"max_bytes": 280}, marks=ON_PYTORCH),
    ],
)
def test_a_run_that_was_stopped_goes_on(
    run, monkeypatch, tmp_path, stops, limit
):
    """Stopped in the fits with these numbers, after an epoch."""
    x, y = learnable(64)
    model = mlp(16)
    arguments = {"epochs": 12, **limit}

    def start(directory):
        keras.utils.set_random_seed(1)
        return run(model, x, y, **arguments, directory=directory)

    whole = start("whole")
    files = sorted((tmp_path / "whole").glob("*/packed"))
    assert len(files) == 4 + ("max_bytes" in limit)
    for number in stops:
        stopped = f"stopped-in-{number}"
        with monkeypatch.context() as changed:
            changed.setattr(keras.Model, "fit", fit_stopped_in(number))
            with pytest.raises(Killed):
                start(stopped)
        again = start(stopped)
        assert again.name == whole.name
        for one, two in zip(weights_of(again.model), weights_of(whole.model)):
            np.testing.assert_array_equal(one, two)
        for file in files:
            same = unpack(tmp_path / stopped / file.parent.name / "packed")
            assert same_weights(weights_of(same), weights_of(unpack(file)))
    # Finished, it returns at once.
    monkeypatch.setattr(keras_distill.Distiller, "train_step", lambda *_: 1 / 0)
    assert start(stopped).name == whole.name


@pytest.mark.one_backend("torch")
def test_a_directory_belongs_to_one_run(run):
    (x, y), model = vectors(32), mlp(16)
    run(model, x, y, max_parameters=100)
    run(model, x, y, max_parameters=100)
    for changes in (
        {"max_parameters": 90},
        {"epochs": 3},
        {"loss": ClassicKD(alpha=1.0)},
        {"augment": MixUp()},
        {"teacher": mlp(8)},
    ):
        with pytest.raises(ValueError, match="with other settings"):
            run(model, x, y, **{"max_parameters": 100, **changes})
    model.set_weights([weight + 1 for weight in model.get_weights()])
    with pytest.raises(ValueError, match="with other settings"):
        run(model, x, y, max_parameters=100)


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "at least one of"),
        ({"max_bytes": 0}, "`max_bytes` must be a whole number"),
        ({"max_bytes": 1.5}, "`max_bytes` must be a whole number"),
        ({"max_ms": -1.0}, "`max_ms` must be a finite number"),
        ({"max_ms": 1.0}, "no time and no arena"),
        ({"max_arena_bytes": 9}, "no time and no arena"),
        ({"max_bytes": 900, "precision": "int4"}, "must have values from"),
        ({"max_bytes": 900, "epochs": 0}, "`epochs` must be"),
        ({"max_bytes": 900, "batch_size": 0}, "`batch_size` must be"),
        ({"max_bytes": 900, "learning_rate": 0.0}, "`learning_rate` must be"),
        ({"max_bytes": 900, "train": iter([])}, "number of batches is known"),
    ],
)
def test_refused(arguments, message, run):
    x, y = vectors(8)
    with pytest.raises(ValueError, match=message):
        run(mlp(8), x, y, **arguments)


@pytest.mark.one_backend("torch")
def test_several_processes_are_refused(run, monkeypatch):
    monkeypatch.setattr(_backend, "process", lambda model: (1, 2))
    x, y = vectors(8)
    with pytest.raises(ValueError, match="process 1 of 2"):
        run(mlp(8), x, y, max_bytes=900)


@pytest.mark.one_backend("torch")
def test_validation_data_must_fit(run):
    x, y = vectors(8)
    with pytest.raises(ValueError, match="does not fit"):
        run(mlp(8, inputs=5), x, y, max_bytes=900)


@pytest.mark.one_backend("torch")
def test_datasets(run):
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return vectors(8, seed=index)[0]

    x, y = vectors(8)
    result = run(mlp(16), x, y, train=Data(), max_parameters=100)
    assert result.model.count_params() <= 100


@pytest.mark.one_backend("torch")
def test_what_is_kept_on_disk(run, tmp_path):
    x, y = vectors(8)
    run(mlp(16), x, y, max_parameters=100)
    found = {path.name for path in pathlib.Path(tmp_path / "shrunk").iterdir()}
    assert found == {"settings.json", "original", *WAYS}
    assert _shrink._ORIGINAL not in WAYS
