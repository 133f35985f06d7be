"""Models that crash the converter or that it cannot convert."""

import os
import pathlib
import subprocess
import textwrap

import keras
import numpy as np
import pytest
from common import BACKEND
from common import images
from common import mlp
from common import to_numpy
from keras import layers
from keras import ops
from litert_files import operations_in
from litert_files import outputs_of_file
from litert_files import tensorflow_only
from programs import command
from programs import environment

from keras_distill import compare
from keras_distill.compression import export_litert
from keras_distill.compression import quantize_aware
from keras_distill.compression.litert import _converter
from keras_distill.compression.litert import _kept_process
from keras_distill.compression.litert._converter_errors import explain
from keras_distill.compression.litert._kept_process import KeptProcess

pytestmark = pytest.mark.any_backend


@keras.saving.register_keras_serializable(package="test_converter")
class Mapped(layers.Layer):
    """A loop that is not a recurrent layer."""

    def call(self, inputs):
        return ops.map(lambda row: 2 * row, inputs)


def recurrent():
    cells = [layers.LSTMCell(4), layers.GRUCell(3)]
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.TimeDistributed(layers.Dense(16, "relu")),
            layers.LSTM(8, return_sequences=True, name="memory"),
            layers.Bidirectional(layers.GRU(8, return_sequences=True)),
            layers.SimpleRNN(8, return_sequences=True),
            layers.RNN(cells),
            layers.Dense(5),
        ]
    )


def convolutional():
    return keras.Sequential(
        [
            keras.Input((6, 5, 4)),
            layers.ConvLSTM1D(4, 3),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def mapped():
    return keras.Sequential(
        [keras.Input((6, 4)), Mapped(), layers.Flatten(), layers.Dense(5)]
    )


def sequences(model, count=64):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(0).normal(size=shape).astype("float32")


JOBS = [
    ("int8", "recurrent"),
    ("int8", "convolutional"),
    ("int8", "mapped"),
    ("float16", "recurrent"),
]
ALL = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, {here!r})
    import warnings
    import torch  # before TensorFlow
    import numpy as np
    import test_converter as t

    warnings.simplefilter("ignore")
    for precision, kind in t.JOBS:
        model = getattr(t, kind)()
        x = t.sequences(model)
        path = {folder!r} + "/" + precision + kind
        t.export_litert(model, path, precision, representative_data=x)
        np.savez(path + ".npz", x=x, y=model.predict(x, verbose=0))
    print("alive")
    """
)


# On other backends, it starts two processes for each model.
@tensorflow_only
def test_recurrent_models_leave_the_process_alive(tmp_path):
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        command("-c", ALL.format(here=here, folder=str(tmp_path))),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "alive"
    for precision, kind in JOBS:
        path = tmp_path / f"{precision}{kind}"
        with np.load(f"{path}.npz") as arrays:
            x, expected = arrays["x"], arrays["y"]
        (output,) = outputs_of_file(path, x)
        limit = 0.05 if precision == "int8" else 0.005
        assert np.abs(output - expected).max() < limit * np.ptp(expected)
        operations = operations_in(path)
        assert "WHILE" in operations
        assert ("QUANTIZE" in operations) == (precision == "int8")


@tensorflow_only
def test_what_stays_in_floats_is_said(tmp_path):
    model = recurrent()
    x = sequences(model)
    with pytest.warns(
        UserWarning,
        match=r"of \d+ operations .* float32: .*WHILE \(memory, .*LiteRT",
    ):
        export_litert(model, tmp_path / "model", "int8", representative_data=x)
    report = compare({"name": model}, litert="int8", rounds=1)
    note = report.notes[0]
    assert note.startswith("litert_int8 of name: ") and "WHILE" in note


@tensorflow_only
def test_a_recurrent_model_that_learned_in_int8(tmp_path):
    model = quantize_aware(convolutional())
    x = sequences(model)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((len(x), 5)), verbose=0)
    with pytest.warns(UserWarning, match=r"WHILE \(conv_lstm1d\)"):
        export_litert(model, tmp_path / "model", "int8")
    (output,) = outputs_of_file(tmp_path / "model", x)
    expected = to_numpy(model(x, training=False))
    assert np.abs(output - expected).max() < 0.05 * np.ptp(expected)


@tensorflow_only
def test_a_loop_between_layers_that_share(tmp_path):
    inputs = keras.Input((6, 4))
    shared = layers.Dense(4)
    outputs = layers.LSTM(3)(shared(shared(inputs)))
    model = keras.Model(inputs, outputs)
    with pytest.raises(RuntimeError, match=r"a loop.*unroll=True.*called once"):
        export_litert(
            model, tmp_path / "m", "int8", representative_data=sequences(model)
        )


@pytest.mark.every_backend
def test_an_ordinary_network_needs_no_process(tmp_path, monkeypatch):
    if BACKEND != "tensorflow":
        monkeypatch.setattr(_converter, "_PROCESS", KeptProcess("no_module"))
        with pytest.raises(RuntimeError, match=r"ended with: .*no_module"):
            export_litert(mlp(), tmp_path / "model")
        return
    monkeypatch.setattr(_converter, "_PROCESS", None)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3)(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    model = keras.Model(inputs, layers.Dense(5, "softmax")(x))
    x, _ = images(channels=3)
    for precision in ("float32", "int8"):
        export_litert(model, tmp_path / "model", precision, x)


def test_a_converter_that_dies(tmp_path, monkeypatch):
    (tmp_path / "dying_converter.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    process = KeptProcess("dying_converter")
    monkeypatch.setattr(_converter, "_PROCESS", process)
    monkeypatch.setattr(_converter, "_COMMON", frozenset())
    path = tmp_path / "model.tflite"
    with pytest.raises(
        RuntimeError, match=r"crashed \(SIGSEGV\).*\['Dense', 'I"
    ):
        export_litert(mlp(), path)
    assert not path.exists()
    report = compare({"name": mlp()}, litert="float32")
    assert report.notes[0].startswith("litert_float32 of name: The process of")


def with_pooling_in_3d():
    inputs = keras.Input((6, 6, 6, 2))
    x = layers.Conv3D(4, 3)(inputs)
    x = layers.MaxPooling3D(2, name="pool")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@tensorflow_only
@pytest.mark.parametrize(
    "precision",
    ["float32", pytest.param("int8", marks=tensorflow_only)],
)
def test_an_operation_that_litert_lacks_is_named(precision, tmp_path):
    model = with_pooling_in_3d()
    x = np.ones((4, 6, 6, 6, 2), "float32")
    message = r"^LiteRT has no operation for TensorFlow's 'MaxPool3D' \(in the "
    with pytest.raises(RuntimeError, match=message + "layer 'pool'") as error:
        export_litert(model, tmp_path / "model", precision, x)
    text = str(error.value)
    assert len(text) < 300 and "\n" not in text and "strides" in text


SCREENS = """\
Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(callsite(fused\
["{0}:", "model_1/{1}/{0}@__inference_serve_67"] at callsite(fused\
["StatefulPartitionedCall:", "StatefulPartitionedCall@__inference_7"] at fused\
["StatefulPartitionedCall:", "StatefulPartitionedCall"]))): 'tf.{0}' op is \
neither a custom op nor a flex op
<unknown>:0: note: loc("StatefulPartitionedCall"): called from
"""


def test_layers_are_found_by_what_tensorflow_calls_them():
    inputs = keras.Input((8,))
    x = layers.Dense(4, name="a_1")(layers.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(4, name="b_1")(x), name="model")
    for place, name in (
        ("a_1", "a"),  # the name was taken before
        ("a_1_1", "a_1"),
        ("b_1", "b_1"),
        ("b_1_1", "b_1"),
    ):
        message = explain(SCREENS.format("Qr", place), model)
        assert f"'Qr' (in the layer {name!r})." in message
    both = SCREENS.format("Qr", "a_1") + SCREENS.format("FFT", "unknown")
    found = "'Qr' (in the layer 'a'), 'FFT'. Replace"
    assert found in explain(both, model)


def test_other_messages_are_cut():
    message = explain("What is wrong.\n" + "more\n" * 99, mlp())
    assert message.endswith("Its converter reports: What is wrong.")
    assert len(explain("x" * 9999, mlp())) < 400


def run_of(module, folder, code, monkeypatch):
    """Return a `KeptProcess` of a module with this code."""
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(folder))
    return KeptProcess(module)


@pytest.mark.one_backend("torch")
def test_a_process_is_kept_until_it_dies_or_must_be_new(tmp_path, monkeypatch):
    code = """
    import os, sys
    for line in sys.stdin:
        if line == "die\\n":
            sys.exit("no reason")
        with open(line.strip(), "w") as file:
            file.write(str(os.getpid()))
        print("done", flush=True)
    """
    process = run_of("keeps", tmp_path, code, monkeypatch)

    def pid(keep=True):
        assert process.run(tmp_path / "pid", keep) == (0, "")
        return int((tmp_path / "pid").read_text())

    first = pid()
    assert pid() == first
    second = pid(keep=False)
    assert second != first
    third = pid()
    assert third not in (first, second)
    code, errors = process.run(pathlib.Path("die"), keep=True)
    assert code == 1 and errors.strip() == "no reason"
    fourth = pid()
    assert fourth != third
    if os.fork() == 0:  # a fork starts its own
        os._exit(0 if pid() != fourth else 1)
    assert os.wait()[1] == 0
    assert pid() == fourth
    os.kill(fourth, 9)  # between two models
    assert process.run(tmp_path / "pid", True)[0] == -9
    process.close()


@pytest.mark.one_backend("torch")
def test_an_idle_process_ends(tmp_path, monkeypatch):
    code = """
    import sys
    for line in sys.stdin:
        print("done", flush=True)
    """
    monkeypatch.setattr(_kept_process, "_IDLE_SECONDS", 0.05)
    process = run_of("idles", tmp_path, code, monkeypatch)
    assert process.run(tmp_path, True) == (0, "")
    started = process._process
    assert started.wait(10) == 0
    assert process.run(tmp_path, True) == (0, "")
    process.close()
