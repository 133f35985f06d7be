"""`compare`: figures from files and measurements, and refused arguments."""

import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import keras
import numpy as np
import pytest
from common import CLASSES
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import vectors
from common import weights_of
from keras import layers
from litert_files import tensorflow_only

from keras_distill import Comparison
from keras_distill import Distiller
from keras_distill import TeacherAgreement
from keras_distill import compare
from keras_distill.compression import export_litert
from keras_distill.compression import pack
from keras_distill.compression import prune_channels
from keras_distill.reports import _compare_files
from keras_distill.reports import _measure

pytestmark = pytest.mark.any_backend


def test_sizes_are_those_of_the_files(tmp_path, monkeypatch):
    def export(model, path, **kwargs):
        export_litert(model, path, **kwargs)
        # A second export may differ by some bytes of padding.
        shutil.copy(path, tmp_path / "litert_float32")
        return []

    monkeypatch.setattr(_measure, "write_litert", export)
    model = cnn(4)
    found = compare([model], litert="float32").to_dict()[model.name]
    model.save(tmp_path / "keras.keras")
    pack(model, tmp_path / "packed")
    for form in ("keras", "packed", "litert_float32"):
        (path,) = tmp_path.glob(f"{form}*")
        assert found[f"{form}_bytes"] == os.path.getsize(path)
    assert found["parameters"] == model.count_params()


@tensorflow_only
def test_zeros_show_in_the_zipped_file():
    dense = mlp(200, name="dense")
    zeros = keras.models.clone_model(dense)
    for weight in dense.trainable_weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    zeros.set_weights(
        [np.where(np.abs(w) < 1, 0, w) for w in dense.get_weights()]
    )
    report = compare({"dense": dense, "zeros": zeros}, litert="int8", rounds=1)
    full, sparse = report.to_dict().values()
    before, after = (f["litert_int8_zipped_bytes"] for f in (full, sparse))
    assert sparse["litert_int8_bytes"] > 0.9 * full["litert_int8_bytes"]
    assert after < 0.8 * before
    assert "LiteRT int8, zipped, bytes" in str(report)


@tensorflow_only
def test_every_precision(tmp_path):
    x, y = images()
    models = {"large": cnn(8), "small": cnn(2)}
    precisions = ("float32", "float16", "dynamic_int8", "int8")
    report = compare(models, (x, y), litert=precisions, rounds=2)
    assert not report.notes
    for figures in report.to_dict().values():
        for precision in precisions:
            assert figures[f"litert_{precision}_bytes"] > 0
            low, middle, high = (
                figures[f"litert_{precision}_ms{end}"]
                for end in ("_low", "", "_high")
            )
            assert 0 < low <= middle <= high
        assert "litert_float32_accuracy" not in figures
        accuracy = figures["litert_float16_accuracy"]
        assert accuracy == pytest.approx(figures["accuracy"], abs=0.1)
    report.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def ranges_of(monkeypatch, *args, **kwargs):
    """Return the int8 samples that `compare` passes on, by model."""
    given = {}

    def export(model, path, precision, representative_data):
        given[model.name] = representative_data
        path.write_bytes(b"a file")
        return []

    monkeypatch.setattr(_measure, "write_litert", export)
    monkeypatch.setattr(_compare_files, "measure_latency", lambda *_: {})
    monkeypatch.setattr(_compare_files, "measure_quality", lambda *_: {})
    compare(*args, litert="int8", **kwargs)
    return given


@tensorflow_only
def test_ranges_come_from_representative_data(monkeypatch):
    models = [mlp(name="a"), mlp(8, name="b")]
    scored, (images, _) = vectors(), vectors(600, seed=3)
    for data in (scored, None):
        found = ranges_of(monkeypatch, models, data, representative_data=images)
        for name in "ab":
            np.testing.assert_array_equal(found[name], [[images[:512]]])
    for used in ranges_of(monkeypatch, models, scored).values():
        np.testing.assert_array_equal(used, [[scored[0]]])
    for used in ranges_of(monkeypatch, models).values():
        assert np.shape(used) == (1, 1, 8, 6)


@tensorflow_only
def test_representative_data_by_name(monkeypatch):
    tensors = [keras.Input((3,), name=name) for name in "ba"]
    outputs = layers.Dense(CLASSES)(layers.Concatenate()(tensors))
    model = keras.Model(tensors, outputs, name="two")
    x = {"a": np.zeros((8, 3), "float32"), "b": np.ones((8, 3), "float32")}
    found = ranges_of(monkeypatch, [model], representative_data=x)
    np.testing.assert_array_equal(found["two"], [[x["b"], x["a"]]])
    one = keras.Sequential([tensors[0], layers.Dense(CLASSES)], name="one")
    found = ranges_of(monkeypatch, [one], representative_data=x)
    np.testing.assert_array_equal(found["one"], [[x["b"]]])


@tensorflow_only
def test_representative_data_that_is_refused():
    message = r"must have inputs of the model.*None, 6.*Received: \[\(8, 7\)"
    for litert in ((), "int8"):
        with pytest.raises(ValueError, match=message):
            compare([mlp()], litert=litert, representative_data=np.ones((8, 7)))
    with pytest.raises(TypeError, match=r"read only once.*generator"):
        compare(
            [mlp()],
            litert=(),
            representative_data=(np.ones((8, 6)) for _ in "a"),
        )


@tensorflow_only
def test_int8_with_representative_data():
    x, y = images()
    model = cnn(4, name="model")
    accuracies = [
        compare(
            [model], (x, y), litert="int8", rounds=1, representative_data=given
        ).to_dict()["model"]["litert_int8_accuracy"]
        for given in (x, [x[:3], (x[3:], y[3:])])
    ]
    assert accuracies[0] == accuracies[1]


@tensorflow_only
def test_zeros_save_no_time_and_channels_do():
    inputs = keras.Input((32, 32, 64))
    x = inputs
    for _ in range(3):
        x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))
    dense = keras.Model(inputs, outputs)
    zeros = keras.models.clone_model(dense)
    generator, weights = np.random.default_rng(0), dense.get_weights()
    zeros.set_weights(
        [np.where(generator.random(w.shape) < 0.1, w, 0) for w in weights]
    )
    models = {
        "dense": dense,
        "zeros": zeros,
        "narrow": prune_channels(dense, 0.5),
    }
    found = compare(models, litert=["float32"]).to_dict()
    for name, model in models.items():
        values = np.concatenate([w.ravel() for w in model.get_weights()])
        counts = found[name]["parameters"], found[name]["nonzero_parameters"]
        assert counts == (values.size, np.count_nonzero(values))
    # The fastest turns, because other processes slow down some turns.
    dense, zeros, narrow = (
        found[name]["litert_float32_ms_low"] for name in models
    )
    assert 0.7 < zeros / dense < 1.4
    assert narrow < 0.7 * dense
    assert found["zeros"]["packed_bytes"] < 0.3 * found["dense"]["packed_bytes"]
    float32, packed = (
        [found[name][f"energy_{chip}_uj"] for name in models]
        for chip in ("float32", "packed")
    )
    assert float32[0] == float32[1] > 2 * float32[2]
    assert packed[0] > 3 * packed[1]


def mean_square(y, predicted):
    return (y - predicted) ** 2


mean_square.__name__ = "own"


def test_accuracy_and_agreement():
    x, y = vectors(40)
    models = [mlp(name="first"), mlp(name="second", activation="softmax")]
    outputs = [model.predict(x, verbose=0) for model in models]
    one_hot = np.eye(CLASSES)[y]
    forms = (y, y[:, np.newaxis], y.astype("float32"), y.tolist(), one_hot)
    for labels in forms:
        found = compare(models, (x, labels), litert=()).to_dict()
        for model, output in zip(models, outputs):
            figures = found[model.name]
            right = np.mean(output.argmax(-1) == y)
            assert figures["accuracy"] == right
            agreement = float(TeacherAgreement()(outputs[0], output))
            assert figures["agreement"] == pytest.approx(agreement)
    assert found["first"]["agreement"] == 1


def regressor(name, units=1):
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(units)],
        name=name,
    )


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(
    "metrics",
    [
        {"mae": keras.metrics.MeanAbsoluteError(), "own": "mse"},
        {"mae": "mae", "own": lambda y, p: keras.ops.square(y - p)},
        [keras.metrics.MeanAbsoluteError(name="mae"), mean_square],
    ],
    ids=["metrics", "names and functions", "list"],
)
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_values_are_measured_by_metrics(metrics, shape):
    x, _ = vectors(40)
    y = np.random.default_rng(1).normal(size=shape)
    models = [regressor("first"), regressor("second")]
    found = compare(models, (x, y), litert=(), metrics=metrics).to_dict()
    for model in models:
        difference = model.predict(x, verbose=0).ravel() - y.ravel()
        figures = found[model.name]
        assert figures["mae"] == pytest.approx(np.mean(np.abs(difference)))
        assert figures["own"] == pytest.approx(np.mean(difference**2))
        assert not {"accuracy", "agreement"} & set(figures)


@tensorflow_only
def test_several_outputs_by_name_and_their_files():
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu")(inputs)
    outputs = {
        "value": layers.Dense(2)(x),
        "kind": layers.Dense(3)(x),
        "unused": layers.Dense(4)(x),
    }
    models = {
        name: keras.Model(inputs, outputs) for name in ("first", "second")
    }
    x, _ = vectors(30)
    generator = np.random.default_rng(0)
    y = {
        "kind": generator.integers(0, 3, 30),
        "value": generator.normal(size=(30, 2)),
    }
    report = compare(
        models,
        (x, y),
        litert="int8",
        rounds=1,
        metrics={
            "value": {"mae": "mae"},
            "kind": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        },
    )
    predicted = models["first"].predict(x, verbose=0)
    error = np.mean(np.abs(predicted["value"] - y["value"]))
    right = np.mean(predicted["kind"].argmax(-1) == y["kind"])
    for figures in report.to_dict().values():
        assert figures["value_mae"] == pytest.approx(error)
        assert figures["kind_accuracy"] == pytest.approx(right)
        assert figures["kind_agreement"] == 1
        assert "value_agreement" not in figures
        assert figures["litert_int8_value_mae"] == pytest.approx(error, rel=0.1)
        assert "litert_int8_kind_accuracy" in figures
    assert "kind agreement" in str(report)


@pytest.mark.one_backend("torch")
def test_several_outputs_in_a_list():
    inputs = keras.Input((6,))
    names = ("b", "a")
    outputs = [layers.Dense(1, name=name)(inputs) for name in names]
    model = keras.Model(inputs, outputs, name="model")
    x, _ = vectors(20)
    y = [np.zeros(20), 100 * np.ones(20)]
    predicted = model.predict(x, verbose=0)
    expected = {
        f"{name}_mae": np.mean(np.abs(output[:, 0] - label))
        for name, output, label in zip(names, predicted, y)
    }
    for labels in (y, dict(zip(names, y))):
        for metrics in (["mae", "mae"], {"a": "mae", "b": ["mae"]}):
            report = compare([model], (x, labels), litert=(), metrics=metrics)
            found = report.to_dict()["model"]
            assert {key: found[key] for key in expected} == pytest.approx(
                expected, rel=1e-5
            )


def several_labels():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(CLASSES, activation="sigmoid")]
    )


@pytest.mark.one_backend("torch")
def test_independent_labels_have_no_accuracy_of_classes():
    x, y = vectors()
    model = several_labels()
    rows = np.random.default_rng(0).integers(0, 2, (len(x), CLASSES))
    for labels in (rows, np.eye(CLASSES)[y]):
        with pytest.raises(ValueError, match=r"several labels at once.*`me"):
            compare([model], (x, labels), litert=())
    found = compare(
        {"model": model},
        (x, rows),
        litert=(),
        metrics={"binary": keras.metrics.BinaryAccuracy()},
    ).to_dict()["model"]
    right = (model.predict(x, verbose=0) > 0.5) == rows
    assert found["binary"] == pytest.approx(right.mean())
    assert "agreement" not in found
    # With one label per sample, it is the class with the largest value.
    found = compare({"model": model}, (x, y), litert=()).to_dict()["model"]
    right = model.predict(x, verbose=0).argmax(-1) == y
    assert found["accuracy"] == right.mean()


def two_outputs():
    inputs = keras.Input((6,))
    names = ("a", "b")
    return keras.Model(
        inputs, {name: layers.Dense(1, name=name)(inputs) for name in names}
    )


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(
    "make, labels, metrics, message",
    [
        (lambda: regressor("m"), (32,), None, "a classifier.*Give `metrics`"),
        (lambda: regressor("m", 3), (32, 3), None, "Labels must be integers"),
        (
            two_outputs,
            (32,),
            None,
            "one output.*a dict of metrics by output name",
        ),
        (two_outputs, (32,), "mae", r"\['a', 'b'\]. `metrics` must be a dict"),
        (two_outputs, (32,), {"c": "mae"}, "outputs are .*'a', 'b'"),
        (lambda: regressor("m"), (32,), ["accuracy"], "'accuracy' stands for"),
        (
            lambda: regressor("m", 3),
            (32,),
            ["mae"],
            "do not fit the metric 'mae'",
        ),
        (lambda: regressor("m", 3), (32, 1), ["mae"], "do not fit the metric"),
        (
            lambda: regressor("m"),
            (32,),
            ["mae", "mae"],
            "must have different names",
        ),
        (
            lambda: regressor("m"),
            (32,),
            {"macs": "mae"},
            "must differ from the keys.*'macs'",
        ),
        (
            lambda: regressor("m", 2),
            (32, 2),
            [keras.metrics.R2Score(class_aggregation=None)],
            r"one number.*\(2,\)",
        ),
    ],
)
def test_metrics_and_labels_that_do_not_fit(make, labels, metrics, message):
    x, _ = vectors()
    y = np.random.default_rng(0).normal(size=labels)
    with pytest.raises(ValueError, match=message):
        compare([make()], (x, y), litert=(), metrics=metrics)


def test_metrics_that_are_none():
    model = regressor("model")
    data = vectors()
    for metrics in ({"mae": 3}, [keras.metrics.MeanAbsoluteError]):
        with pytest.raises(TypeError, match="must be Keras metrics"):
            compare([model], data, litert=(), metrics=metrics)
    with pytest.raises(ValueError, match="`metrics` require `data`"):
        compare([model], litert=(), metrics=["mae"])
    unlabelled = (data[0], {"a": data[1]})
    with pytest.raises(ValueError, match="no labels for the output 'b'"):
        compare([two_outputs()], unlabelled, litert=(), metrics={"b": "mae"})


@pytest.mark.one_backend("torch")
def test_several_inputs_by_name():
    tensors = {name: keras.Input((3,), name=name) for name in ("b", "a")}
    x = layers.Concatenate()(list(tensors.values()))
    outputs = layers.Dense(CLASSES)(x)
    models = {
        "dict": keras.Model(tensors, outputs),
        "list": keras.Model(list(tensors.values()), outputs),
    }
    generator = np.random.default_rng(0)
    x = {name: generator.normal(size=(8, 3)) for name in ("a", "b")}
    y = models["dict"].predict(x, verbose=0).argmax(-1)
    for figures in compare(models, (x, y), litert=()).to_dict().values():
        assert figures["accuracy"] == 1


def test_of_a_distiller_the_student_counts():
    student = mlp(4, name="student")
    distiller = Distiller(student=student, teacher=mlp(16))
    found = compare({"run": distiller}, litert=()).to_dict()["run"]
    assert found["parameters"] == student.count_params()


def test_models_stay_as_they_are():
    model = mlp(500)
    x, y = vectors()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    weights, calls = weights_of(model), len(model.layers[0]._inbound_nodes)
    found = compare([model], (x, y), litert=()).to_dict()[model.name]
    assert same_weights(weights, weights_of(model))
    assert calls == len(model.layers[0]._inbound_nodes)
    assert model.compiled and model.optimizer.built
    plain = mlp(500)
    without = compare([plain], litert=()).to_dict()[plain.name]
    # The file has no optimizer state, which would take 48 kB.
    difference = found["keras_bytes"] - without["keras_bytes"]
    assert abs(difference) < 5000


FIGURES = {
    "large": {
        "parameters": 1234567,
        "macs": None,
        "keras_bytes": 5000000,
        "litert_int8_ms": 0.012345,
        "litert_int8_ms_low": 0.011,
        "litert_int8_ms_high": 1.2,
        "energy_float32_uj": 1234.5,
        "accuracy": 0.91234,
    },
    "small": {"parameters": 12, "accuracy": 1.0},
}
TEXT = """\
                                                large     small
parameters                                  1,234,567        12
MACs                                                -         -
.keras, bytes                               5,000,000         -
LiteRT int8, ms               0.0123 (0.0110 to 1.20)         -
energy estimate, float32, µJ                    1,234         -
accuracy                                      91.23 %  100.00 %
a note"""


@tensorflow_only
def test_the_table():
    report = Comparison(FIGURES, ["a note"])
    assert str(report) == TEXT
    assert report.to_dict()["large"] == FIGURES["large"]
    assert report.to_dict()["small"]["macs"] is None
    report.to_dict()["large"]["macs"] = 1
    assert report.to_dict()["large"]["macs"] is None
    rows = report.to_markdown().splitlines()
    assert rows[:3] == [
        "|  | large | small |",
        "| --- | ---: | ---: |",
        "| parameters | 1,234,567 | 12 |",
    ]
    assert rows[-2:] == ["", "a note"]


@tensorflow_only
def test_the_table_in_a_notebook():
    figures = {"<i>large</i>": FIGURES["large"], "small": FIGURES["small"]}
    html = Comparison(figures, ["a < b"])._repr_html_()
    root = ElementTree.fromstring(f"<div>{html}</div>")
    (table,) = root.iter("table")
    rows = [list(row) for row in table.iter("tr")]
    markdown = Comparison(figures).to_markdown().splitlines()
    assert [[cell.text or "" for cell in row] for row in rows] == [
        row.strip("| ").split(" | ") if index else ["", *figures]
        for index, row in enumerate([markdown[0], *markdown[2:]])
    ]
    for row in rows:
        for cell in row[1:]:
            assert "text-align: right" in cell.get("style")
    assert root.find("p").text == "a < b"
    # The page sets the colors, and nothing is loaded.
    assert not re.search("#|rgb|background|href|src|url|class", html)


def test_a_figure_that_cannot_be_had_is_noted():
    inputs = keras.Input((4,))
    scores = layers.AdditiveAttention()([inputs[:, None], inputs[:, None]])
    code = layers.Lambda(lambda t: t)(scores)
    report = compare({"odd": keras.Model(inputs, code)}, litert=())
    figures = report.to_dict()["odd"]
    assert figures["macs"] is None
    assert figures["energy_float32_uj"] is None
    assert "packed_bytes" not in figures
    packed, macs = report.notes
    assert packed.startswith("packed of odd: ") and "Lambda" in packed
    assert macs.startswith("macs of odd: unknown for additive_attention")


def test_without_the_extras(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"keras-distill\[litert\]"):
        compare([mlp()], litert="float32")
    report = compare([mlp(name="model")], vectors())
    (note,) = report.notes
    assert "is not installed. Install it with: pip install 'keras" in note
    assert not any("litert" in key for key in report.to_dict()["model"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.plot(tmp_path / "plot.png")


@tensorflow_only
def test_no_plot_without_accuracy(tmp_path):
    with pytest.raises(ValueError, match=r"compare\(models, \(x, y\)\)"):
        compare([mlp()], litert=()).plot(tmp_path / "plot.png")


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.layer(inputs)


def test_models_that_are_refused():
    with pytest.raises(ValueError, match=r"at least one model. Received: {}"):
        compare({})
    with pytest.raises(
        TypeError, match=r"instances of `keras.Model`. Received: 'b'"
    ):
        compare({"a": "b"})
    with pytest.raises(TypeError, match="must be a dict of models by name"):
        compare(mlp())
    with pytest.raises(ValueError, match="'raw' is not built"):
        compare({"raw": keras.Sequential([layers.Dense(2)])})
    own = Own()
    own(np.zeros((1, 6)))
    with pytest.raises(
        ValueError, match="`compare` requires a functional model"
    ):
        compare([own])
    with pytest.raises(
        ValueError, match=r"different names. Received: \['a', 'a'"
    ):
        compare([mlp(name="a"), mlp(name="a")])
    open_size = keras.Sequential([keras.Input((None, 3)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"of 'open' is not fixed.*known size"):
        compare({"open": open_size})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: x, r"must be a tuple `\(x, y\)`"),
        (lambda x, y: (x, y[:-1]), r"as many labels as.*\[\(32, 6\), \(31,\)"),
        (
            lambda x, y: (x[:0], y[:0]),
            r"one sample. Received: .*\(0, 6\), \(0,\)",
        ),
        (
            lambda x, y: (x * np.nan, y),
            "must have finite values. Received: NaN",
        ),
        (lambda x, y: (x.tolist(), y), "`data` must be arrays"),
        (lambda x, y: (x[:, :5], y), r"does not fit the model 'a'.*\(32, 5\)"),
        (lambda x, y: ({"b": x}, y), "does not fit the model 'a'.*'b'"),
        (lambda x, y: (x, y + 1), "Labels must be integers from 0 to 4.*to 5"),
        (lambda x, y: (x, y - 1), "Labels must be integers from 0 to 4"),
        (lambda x, y: (x, y + 0.5), "Labels must be integers from 0 to 4"),
        (lambda x, y: (x, np.eye(7)[y]), r"Labels must be.*shape \(32, 7\)"),
    ],
)
def test_data_that_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        compare([mlp(name="a")], change(*vectors()), litert=())


def test_models_that_do_not_fit_the_data():
    data = vectors()
    with pytest.raises(ValueError, match=r"same outputs.*\(5,\)} and 'b' .*7"):
        compare([mlp(name="a"), mlp(classes=7, name="b")], data, litert=())
    with pytest.raises(ValueError, match=r"outputs of shape \[\(None, 1"):
        compare([mlp(classes=1, name="a")], data, litert=())
    broken = mlp(name="broken")
    broken.set_weights([w * np.nan for w in broken.get_weights()])
    with pytest.raises(ValueError, match="'broken' returns NaN or infinity"):
        compare([broken], data, litert=())


def test_other_arguments_that_are_refused():
    with pytest.raises(
        ValueError, match=r"`litert` must have values from.*int4"
    ):
        compare([mlp()], litert=("int4",))
    with pytest.raises(ValueError, match="`rounds` must be a whole number"):
        compare([mlp()], litert=(), rounds=0)
