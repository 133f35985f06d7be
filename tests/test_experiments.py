"""The experiments run, read real archives, and follow the results' schema.

On PyTorch only, where nothing has to be compiled: the experiments use the
package as the other tests do, which run on every backend. What is left are
options, files and tables.
"""

import io
import pathlib
import runpy
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

from keras_distill.compression import unpack

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
RESULTS = sorted((EXPERIMENTS / "results").glob("*.json"))


pytestmark = pytest.mark.one_backend("torch")


@pytest.fixture(autouse=True)
def experiments_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs an experiment and returns what it prints.

    It runs in this process, which has imported the backend already. A smoke run
    has a few steps per model, which take less time than their compilation.
    """
    compile_model = keras.Model.compile

    def compile_eagerly(self, *args, **kwargs):
        eager = {"run_eagerly": True, "jit_compile": False}
        kwargs.pop("steps_per_execution", None)
        return compile_model(self, *args, **{**kwargs, **eager})

    monkeypatch.setattr(keras.Model, "compile", compile_eagerly)
    monkeypatch.chdir(tmp_path)

    def run(experiment, *arguments):
        path = str(EXPERIMENTS / experiment)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def rows_of(path):
    """Return the rows of a file, which follow the schema."""
    import results_schema

    return results_schema.read(path)


def test_digits(run, tmp_path):
    run("digits.py", "--smoke", "--out", tmp_path)
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    keras.models.load_model(tmp_path / "demo_student.keras")
    assert 10_000 < (tmp_path / "demo_student.tflite").stat().st_size <= 20_000


def test_torch_teacher(run, tmp_path):
    arguments = ["--epochs", 2, "--recorded-epochs", 1, "--smoke"]
    run("torch_teacher.py", *arguments, "--workdir", "runs")
    file = tmp_path / f"runs/{keras.backend.backend()}.json"
    (row,) = rows_of(file)
    metrics = row["metrics"]
    first, last = metrics["loss"]
    assert last < first
    limit = 1e-3 * metrics["largest_logit"]
    assert metrics["largest_error_of_recording"] < limit
    assert row["settings"]["backend"] in row["command"]


def test_compare_losses(run, tmp_path):
    run("compare_losses.py", "--smoke", "--out", tmp_path / "losses.json")
    assert len(rows_of(tmp_path / "losses.json")) == 13


@pytest.mark.parametrize("experiment", ["regression.py", "multi_label.py"])
def test_values_and_labels(experiment, run, tmp_path):
    out = tmp_path / "results.json"
    run(experiment, "--smoke", "--out", out)
    rows = rows_of(out)
    metrics = [*(values for row in rows for values in row["metrics"].values())]
    assert {len(values) for values in metrics} == {1}
    assert any("no labels" in row["name"] for row in rows)


def test_int8(run, tmp_path):
    lines = run("int8.py", "--smoke").splitlines()
    assert sum("bytes, file" in line for line in lines) == 5
    assert len(list((tmp_path / "runs").glob("*.tflite"))) == 5


def test_consistency(run, tmp_path):
    run("consistency.py", "--smoke")
    rows = rows_of(tmp_path / "consistency.json")
    assert len({row["settings"]["views"] for row in rows}) == len(rows) == 4
    assert all(len(row["metrics"]["test_accuracy"]) == 1 for row in rows)


def test_compare_resnet20(run, tmp_path):
    run("compare_resnet20.py", "--smoke")
    assert "90 % zeros" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("mnist.py", "--mix", "--shift", 0.06),
        ("cifar10.py", "--mix", 0.3, "--recorded-epochs", 1),
        ("flowers102.py", "--size", 32, "--loss", "classic_kd"),
    ],
    ids=lambda a: a[0],
)
def test_images_in_smoke_mode(arguments, run, tmp_path):
    experiment, *others = arguments
    arguments = [*others, "--smoke", "--workdir", "runs"]
    run(experiment, *arguments)
    (row,) = rows_of(tmp_path / "runs/results.json")
    settings, metrics = row["settings"], row["metrics"]
    assert 0 <= metrics["accuracy"] <= 1 and 0 <= metrics["agreement"] <= 1
    assert settings["epochs"] == 1 and isinstance(settings["mix"], float)
    assert not {"data", "workdir"} & settings.keys()
    assert row["command"].startswith(f"python experiments/{experiment} --")
    assert (tmp_path / "runs/curves.png").stat().st_size > 5_000
    student = keras.models.load_model(tmp_path / f"runs/{row['name']}.keras")
    assert student.count_params() == metrics["parameters"]
    again = run(experiment, *arguments)
    assert f"{row['name']}.keras" in again and "Training" not in again


def test_the_pages_show_the_results():
    import tables

    for path, text in tables.pages().items():
        assert path.read_text() == text, "Run `python experiments/tables.py`."


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_follow_the_schema(path):
    rows = rows_of(path)
    assert len({row["name"] for row in rows}) == len(rows) > 0
    for row in rows:
        script = row["command"].split("python ")[1].split()[0]
        assert (ROOT / script).exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema": 2}, "`schema` must be 1. Received: 2"),
        ({"speed": 3}, "the keys must be"),
        ({"settings": "--epochs 5"}, "`settings` must be"),
        ({"settings": {"mix": [1]}}, "setting mix must be one value"),
        ({"metrics": {"accuracy": "good"}}, "metric accuracy must be numbers"),
        ({"metrics": {"accuracy": []}}, "metric accuracy must be numbers"),
        ({"commit": None}, "`note` must say why"),
    ],
)
def test_rows_of_another_form_are_refused(changes, message):
    import results_schema

    options = types.SimpleNamespace(epochs=5, workdir="runs")
    given = ("row", options, {"accuracy": 0.5}, "python x.py", "abc", "1 core")
    row = results_schema.new_row(*given, network="cnn")
    assert row["settings"] == {"epochs": 5, "network": "cnn"}
    with pytest.raises(ValueError, match=message):
        results_schema.check({**row, **changes})


def test_prune_importance(run, tmp_path):
    run("prune_importance.py", "--smoke", "--out", tmp_path / "rows.json")
    rows = rows_of(tmp_path / "rows.json")
    assert {row["settings"]["importance"] for row in rows} == {
        "l1",
        "batch_norm",
        "taylor",
    }
    assert len(rows) == 6


def test_prune_resnet(run, tmp_path):
    run("prune_resnet.py", "--smoke")
    pruned, taught = rows_of(tmp_path / "runs/results.json")
    assert pruned["settings"]["epochs"] == 0
    assert taught["settings"]["epochs"] == 1
    metrics = taught["metrics"]
    assert metrics["parameters"] < 0.3 * metrics["teacher_parameters"]
    run("prune_resnet.py", "--smoke", "--report")
    assert "accuracy" in (tmp_path / "runs/comparison.md").read_text()


# The teacher has no normalizations, and so fewer parameters.
@pytest.mark.filterwarnings("ignore:The student is larger:UserWarning")
def test_share_resnet(run, tmp_path):
    run("share_resnet.py", "--smoke")
    (row,) = rows_of(tmp_path / "runs/results.json")
    packed = tmp_path / f"runs/{row['name']}.packed"
    kernels = [w for w in unpack(packed).get_weights() if w.ndim == 4]
    assert max(len(np.unique(kernel)) for kernel in kernels) == 8
    assert packed.stat().st_size < 4 * row["metrics"]["parameters"] / 8


def test_small_devices(run, tmp_path):
    arguments = ["--max-bytes", 9000, "--smoke", "--workdir", "runs"]
    run("small_devices.py", *arguments)
    (row,) = rows_of(tmp_path / "runs/results.json")
    (file,) = (tmp_path / "runs").glob("*.tflite")
    size = file.stat().st_size
    assert 7000 < size == row["metrics"]["bytes"] <= 9000
    assert row["settings"]["candidate"] in ("uniform", "global", "iterative")
    assert row["metrics"]["arena_bytes"] > 1000
    run("small_devices.py", *arguments)  # Nothing is trained again.
    (again,) = rows_of(tmp_path / "runs/results.json")
    assert again["metrics"]["accuracy"] == row["metrics"]["accuracy"]


def test_deep_compression(run, tmp_path):
    arguments = ["--network", "lenet_5", "--smoke", "--workdir", "runs"]
    run("deep_compression.py", *arguments)
    rows = rows_of(tmp_path / "runs/results.json")
    stages = [row["settings"]["stage"] for row in rows]
    assert stages == ["dense", "pruned", "shared"]
    dense, pruned, shared = (row["metrics"] for row in rows)
    assert dense["zeros"] < 0.01 and pruned["zeros"] > 0.9
    assert shared["bytes"] < pruned["bytes"] / 3 < dense["bytes"] / 3
    assert shared["bytes"] < shared["zlib_bytes"]
    # Another setting goes on from the stages that it shares.
    run("deep_compression.py", *arguments, "--num-clusters", "3")
    names = {path.name for path in (tmp_path / "runs").glob("*.keras")}
    assert len(names) == 4 and sum("shared" in name for name in names) == 2
    # Narrower, the file has the size of a part of the dense network.
    run("deep_compression.py", *arguments, "--narrow", "0.5")
    rows = rows_of(tmp_path / "runs/results.json")
    narrow = [row["metrics"] for row in rows if row["settings"]["narrow"]]
    assert narrow[-1]["bytes"] < shared["bytes"] / 2
    assert narrow[-1]["float32_bytes"] == shared["float32_bytes"] == 1_724_320


def test_lenets_are_those_that_papers_compress():
    import deep_compression

    assert deep_compression.lenet_300_100().count_params() == 266_610
    assert deep_compression.lenet_5().count_params() == 431_080


def test_a_network_of_other_settings_is_refused(tmp_path, monkeypatch):
    import experiment_results

    settings = types.SimpleNamespace(workdir=tmp_path, epochs=10)
    monkeypatch.setattr(sys, "argv", ["mnist.py"])
    row = experiment_results.row_of("alone", settings, {"accuracy": 0.5})
    experiment_results.add(row, tmp_path)
    experiment_results.refuse_other_settings("alone", settings)
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "5"])
    settings.epochs = 5
    with pytest.raises(SystemExit, match="--epochs 5"):
        experiment_results.refuse_other_settings("alone", settings)
    experiment_results.refuse_other_settings("another", settings)


def options(folder, **others):
    given = {"data": folder, "smoke": False, "validation": False, "size": 24}
    return types.SimpleNamespace(**{**given, **others})


def images(count, height=32, width=32):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, height, width, 3), dtype="uint8")


def encoded(picture, kind, **how):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **how)
    return buffer.getvalue()


def joined(files):
    """Return files one after the other, and where each begins."""
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), "uint8"), offsets


def test_the_cifar10_archive(tmp_path):
    import cifar10

    arrays, pixels = {}, images(12)
    for split, chosen in (("train", pixels[:8]), ("test", pixels[8:])):
        strips = [
            encoded(strip.reshape(-1, 32, 3), "webp", lossless=True)
            for strip in (chosen[:2], chosen[2:])
        ]
        arrays[f"webp_{split}"], arrays[f"offsets_{split}"] = joined(strips)
        arrays[f"y_{split}"] = np.arange(len(chosen), dtype="uint8")
    np.savez(tmp_path / "cifar10.npz", **arrays)
    (x, y), (x_test, y_test) = cifar10.load(options(tmp_path))
    np.testing.assert_array_equal(np.concatenate([x, x_test]), pixels)
    assert [*y, *y_test] == [*range(8), *range(4)]


def test_the_flowers102_archive(tmp_path):
    import flowers102

    pixels = np.zeros((5, 160, 200, 3), "uint8")
    pixels[:, :, :20] = 255  # Cropped away.
    pixels[:, :, 100:] = np.array([10, 60, 110, 160, 210])[:, None, None, None]
    data, offsets = joined([encoded(p, "jpeg", quality=95) for p in pixels])
    np.savez(
        tmp_path / "flowers102_160.npz",
        jpeg=data,
        offsets=offsets,
        label=np.array([3, 1, 4, 1, 5], "uint8"),
        split=np.array([0, 2, 1, 2, 0], "uint8"),
    )
    (x, y), (x_test, y_test) = flowers102.load(options(tmp_path))
    assert x.shape == (2, 160, 160, 3) and x_test.shape == (2, 24, 24, 3)
    assert list(y) == [3, 5] and list(y_test) == [1, 1]
    right = x_test[:, 12, -1, 0].astype(int)
    assert np.abs(right - [60, 160]).max() <= 3 and x_test.max() < 200
    _, (_, y_val) = flowers102.load(options(tmp_path, validation=True))
    assert list(y_val) == [4]


@pytest.mark.parametrize("content", [None, b"no archive", b"PK\x03\x04 cut"])
@pytest.mark.parametrize(
    "example, file, array",
    [
        ("mnist.py", "mnist.npz", "x_train"),
        ("cifar10.py", "cifar10.npz", "webp_train"),
        ("flowers102.py", "flowers102_160.npz", "jpeg"),
    ],
)
def test_wrong_data(example, file, array, content, tmp_path):
    module = __import__(example.removesuffix(".py"))
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(SystemExit) as error:
        module.load(options(tmp_path))
    expected = "There is no" if content is None else "is no"
    assert expected in str(error.value) and array in str(error.value)


def test_wrong_images(tmp_path):
    import mnist

    x, y = np.zeros((4, 20, 20), "uint8"), np.zeros(4, "uint8")
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(SystemExit, match="28x28"):
        mnist.load(options(tmp_path))


def test_a_wrong_folder_ends_the_program_with_one_line(run):
    with pytest.raises(SystemExit) as error:
        run("mnist.py", "--data", "nowhere")
    # Python prints the text of a `SystemExit`, and no traceback.
    assert error.value.code.startswith("There is no nowhere")
    assert "\n" not in error.value.code


def test_the_mobilenet_archive(tmp_path):
    import flowers102

    file = "imagenet_mobilenetv2_nchw_npy.npz"
    random = np.random.default_rng(0)
    model = flowers102.mobilenet_v2(options(None, size=32))
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    convolutions = [x for x in model.layers if isinstance(x, kinds)]
    assert len(convolutions) == 52
    arrays = {}
    for number, layer in enumerate(convolutions):
        height, width, *channels = layer.kernel.shape
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            channels = channels[::-1]
        shape = (*channels[::-1], height, width)
        arrays[f"conv_{2 * number}_weight"] = random.random(shape, "float32")
        arrays[f"conv_{2 * number}_bias"] = random.random(shape[0], "float32")
    np.savez(tmp_path / file, **arrays)
    loaded = flowers102.mobilenet_v2(options(tmp_path, size=32))
    loaded = [x for x in loaded.layers if isinstance(x, kinds)]
    expected = arrays["conv_4_weight"]  # A pointwise one.
    actual = keras.ops.convert_to_numpy(loaded[2].kernel)
    np.testing.assert_array_equal(actual[0, 0], expected[:, :, 0, 0].T)
    expected = arrays["conv_2_weight"]  # A depthwise one.
    actual = keras.ops.convert_to_numpy(loaded[1].kernel)
    np.testing.assert_array_equal(actual[:, :, 5, 0], expected[5, 0])

    del arrays["conv_0_weight"]
    np.savez(tmp_path / file, **arrays)
    with pytest.raises(SystemExit, match="52 convolutions"):
        flowers102.mobilenet_v2(options(tmp_path, size=32))


def test_shakespeare(run, tmp_path):
    text = "To be, or not to be, that is the question.\n" * 80
    (tmp_path / "tinyshakespeare.txt").write_text(text)
    out = tmp_path / "rows.json"
    run("shakespeare.py", "--smoke", "--data", tmp_path, "--out", out)
    rows = {row["name"]: row["metrics"] for row in rows_of(out)}
    assert len(rows) == 8
    assert rows["teacher"]["parameters"] > 4 * rows["alone"]["parameters"]
    of_files = [
        rows[name]["litert_float32_bytes"] for name in ("teacher", "forward")
    ]
    assert of_files[0] > 2 * of_files[1]


def test_text_classifiers(run, tmp_path):
    for data in ("sst2", "trec"):
        (tmp_path / data).mkdir()
        for split in ("train", "test"):
            lines = "GOOD:very a good film\nBAD:very a bad film\n" * 8
            (tmp_path / data / f"{split}.txt").write_text(lines)
    out = tmp_path / "rows.json"
    run("text_classifiers.py", "--smoke", "--data", tmp_path, "--out", out)
    rows = {row["name"]: row["metrics"] for row in rows_of(out)}
    assert len(rows) == 14
    assert rows["trec, one of the teachers"]["litert_float32_ms"] > 0
