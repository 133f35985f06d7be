"""Files for microcontrollers: int8 inputs, C arrays, and the RAM they take."""

import ctypes
import re
import subprocess

import keras
import numpy as np
import pytest
from common import images
from common import to_numpy
from keras import layers
from litert_files import interpreter_of
from litert_files import outputs_of_file
from litert_files import tensorflow_only

from keras_distill import compare
from keras_distill.compression import export_litert
from keras_distill.compression import quantize_aware
from keras_distill.compression.litert import _arena
from keras_distill.compression.litert._interpreter import run_file
from keras_distill.reports import _compare_files

pytestmark = pytest.mark.any_backend

X, _ = images(32)


def network():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = [layers.Dense(5)(x), layers.Dense(3, "softmax")(x)]
    return keras.Model(inputs, outputs)


def scales(path):
    runner = interpreter_of(path).get_signature_runner()
    found = {**runner.get_input_details(), **runner.get_output_details()}
    return {name: detail["quantization"] for name, detail in found.items()}


@tensorflow_only
@pytest.mark.parametrize("aware", [False, True])
def test_int8_inputs_and_outputs(tmp_path, aware):
    model = network()
    expected = to_numpy(model(X))
    data = None if aware else X
    if aware:
        model = quantize_aware(model)
        for _ in range(20):  # the ranges follow what they see
            model(X, training=True)
    path = tmp_path / "model.tflite"
    export_litert(model, path, "int8", data, io_dtype="int8")
    details = interpreter_of(path).get_input_details()
    details += interpreter_of(path).get_output_details()
    assert {detail["dtype"] for detail in details} == {np.int8}
    scale, zero_point = scales(path)["image"]
    quantized = np.clip(np.rint(X / scale) + zero_point, -128, 127)
    raw = outputs_of_file(path, quantized.astype("int8"))
    for index, output in enumerate(run_file(path.read_bytes(), ["image"], [X])):
        scale, zero_point = scales(path)[f"output_{index}"]
        # The two interpreters may round differently.
        np.testing.assert_allclose(
            output,
            scale * (raw[index].astype("float32") - zero_point),
            atol=1.01 * scale,
        )
        error = np.abs(output - expected[index]).max()
        assert error < 0.05 * np.ptp(expected[index]) + 1 / 128


def test_int8_inputs_require_an_int8_file(tmp_path):
    for arguments in (("float32", None, "int8"), ("int8", X, "uint8")):
        precision, data, io_dtype = arguments
        with pytest.raises(ValueError, match="`io_dtype` must be"):
            export_litert(
                network(), tmp_path / "m", precision, data, io_dtype=io_dtype
            )
    with pytest.raises(ValueError, match="a folder that exists"):
        export_litert(network(), tmp_path / "m", c_array=tmp_path / "no/m.h")
    assert not [*tmp_path.iterdir()]


@tensorflow_only
def test_a_c_compiler_reads_the_array(tmp_path):
    path, code = tmp_path / "model.tflite", tmp_path / "2-class model.h"
    export_litert(
        network(), path, "int8", X, io_dtype="int8", c_array=str(code)
    )
    content = path.read_bytes()
    text = code.read_text()
    (inside,) = re.findall(r"_2_class_model\[\] = \{(.*?)\};", text, re.S)
    assert bytes(int(b, 16) for b in re.findall(r"0x..", inside)) == content
    assert f"_2_class_model_length = {len(content)};" in text
    for name, (scale, zero_point) in scales(path).items():
        found = re.search(rf"_{name}_scale = (\S+)f;", text)
        assert np.float32(found[1]) == np.float32(scale)
        assert f"_{name}_zero_point = {zero_point};" in text
    program = '#include "{}"\n{} const unsigned char* get() {{ return {}; }}'
    for compiler, source, keyword in (
        ("gcc", "a.c", "extern"),
        ("g++", "a.cc", 'extern "C"'),
    ):
        (tmp_path / source).write_text(
            program.format(code.name, keyword, "_2_class_model")
        )
        library = tmp_path / f"{source}.so"
        command = [compiler, "-shared", "-fPIC", tmp_path / source, "-o"]
        subprocess.run([*command, library], check=True)
        get = ctypes.CDLL(library).get
        get.restype = ctypes.c_void_p
        assert ctypes.string_at(get(), len(content)) == content
        assert get() % 16 == 0


@tensorflow_only
def test_the_interpreter_of_microcontrollers_agrees(tmp_path):
    from tflite_micro.python.tflite_micro import runtime

    path = tmp_path / "model.tflite"
    export_litert(network(), path, "int8", X)
    content = path.read_bytes()
    arena = _arena.arena_bytes(content)
    # At least the input, and what the first convolution makes of it.
    assert 8 * 8 + 6 * 6 * 8 < arena < 10_000
    runtime.Interpreter.from_bytes(content, arena_size=arena + 1024)
    with pytest.raises(RuntimeError, match="llocat"):
        runtime.Interpreter.from_bytes(content, arena_size=arena - 64)
    micro = runtime.Interpreter.from_bytes(content, arena_size=2**20)
    by_size = {
        rows.shape[-1]: rows for rows in run_file(content, ["image"], [X])
    }
    for index, image in enumerate(X):
        micro.set_input(image[None], 0)
        micro.invoke()
        for output in map(micro.get_output, range(2)):
            rows = by_size[output.shape[-1]]
            step = np.ptp(rows) / 100
            np.testing.assert_allclose(output[0], rows[index], atol=step)


@tensorflow_only
def test_compare_has_the_arena(monkeypatch):
    models = {"small": network(), "large": keras.Sequential([network_of(32)])}
    models["large"].build((None, 8, 8, 1))
    report = compare(models, litert="int8", representative_data=X)
    found = {
        name: figures["litert_int8_arena_bytes"]
        for name, figures in report.to_dict().items()
    }
    assert 0 < found["small"] < found["large"]
    assert "LiteRT int8 arena, bytes" in str(report)

    def fails(content):
        raise RuntimeError("no memory")

    monkeypatch.setattr(_compare_files, "arena_bytes", fails)
    report = compare([network()], litert="int8", representative_data=X)
    assert any("arena of" in note for note in report.notes)
    monkeypatch.setattr(_compare_files, "micro_is_installed", lambda: False)
    report = compare([network()], litert="int8", representative_data=X)
    assert "arena" not in str(report)


def network_of(width):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, activation="relu")(inputs)
    return keras.Model(
        inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    )


@pytest.mark.one_backend("torch")
def test_a_file_that_is_none_or_uses_what_is_missing():
    with pytest.raises(RuntimeError, match="cannot run the file"):
        _arena.arena_bytes(b"no LiteRT file")
