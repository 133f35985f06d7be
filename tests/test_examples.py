"""The examples are short, run, and become notebooks."""

import io
import pathlib
import runpy
import sys

import keras
import numpy as np
import pytest
from common import cnn
from common import same_outputs
from PIL import Image

import keras_distill
from keras_distill import RecordedTeacher

# What the examples use is tested on every backend. That a script is not out of
# date shows on one.
pytestmark = pytest.mark.one_backend("torch")

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
# The number of lines that a script may have.
LONGEST = {
    "quickstart": 60,
    "mnist": 120,
    "text_classifier": 120,
    "language_model": 120,
    "cifar10": 140,
    "flowers102": 140,
    "make_notebooks": 140,
}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs an example for one epoch, in this process.

    Returns:
        A function of a name, arguments, and texts to replace in the script. It
        returns the example's names.
    """
    fit, record = keras.Model.fit, keras_distill.record_teacher

    def fit_once(self, *args, **kwargs):
        short = {"epochs": 1, "verbose": 0, "steps_per_epoch": 1}
        if isinstance(getattr(self, "teacher", None), RecordedTeacher):
            del short["steps_per_epoch"]
        return fit(self, *args[:2], **{**kwargs, **short})

    def record_once(*args, **kwargs):
        return record(*args, **{**kwargs, "epochs": 1, "verbose": 0})

    def run(name, *arguments, changes=()):
        source = (EXAMPLES / f"{name}.py").read_text()
        for old in changes:
            assert old in source
            source = source.replace(old, changes[old])
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        return runpy.run_path(str(path), run_name="__main__")

    monkeypatch.setattr(keras.Model, "fit", fit_once)
    monkeypatch.setattr(keras_distill, "record_teacher", record_once)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_is_short_and_says_how_to_run_it(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    assert len(source.splitlines()) <= LONGEST.get(name, 90)
    assert f"python examples/{name}.py" in source.split('"""')[1]
    imports_of_helpers = [
        line
        for line in source.splitlines()
        if line.startswith(("import ", "from "))
        and (EXAMPLES / f"{line.split()[1]}.py").exists()
    ]
    assert not imports_of_helpers


@pytest.mark.parametrize(
    "name",
    [
        "hints",
        "multi_label",
        "quickstart",
        "recorded_teacher",
        "regression",
        "segmentation",
        "torch_teacher",
    ],
)
def test_each_runs_and_saves_the_student(name, run, capsys, tmp_path):
    names = run(name)
    printed = capsys.readouterr().out
    assert "parameters" in printed or "student accuracy" in printed
    student = keras.models.load_model(tmp_path / "student.keras")
    assert student.input_shape == names["student"].input_shape


def test_prune_and_export(run, capsys, tmp_path):
    names = run("prune_and_export")
    assert names["pruned"].count_params() < names["network"].count_params() / 2
    assert (tmp_path / "student.tflite").stat().st_size > 1000
    assert "int8: accuracy" in capsys.readouterr().out


def encoded(picture, kind, **how):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **how)
    return buffer.getvalue()


def joined(files):
    """Return files one after the other, and where each begins."""
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), "uint8"), offsets


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")


def test_mnist(run, tmp_path):
    x, y = noise(64, 28, 28), np.arange(64, dtype="uint8") % 10
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(tmp_path / "mnist.npz", **arrays)
    run("mnist", "--data", tmp_path, "--epochs", 1)
    assert (tmp_path / "mnist_student.keras").exists()


def test_text_classifier(run, tmp_path, capsys):
    for split in ("train", "test"):
        lines = "GOOD:very a good film\nBAD:very a bad film\n" * 8
        (tmp_path / f"{split}.txt").write_text(lines)
    names = run("text_classifier", "--data", tmp_path)
    assert names["classes"] == ["BAD", "GOOD"]
    assert "student: " in capsys.readouterr().out
    student = keras.models.load_model(tmp_path / "student.keras", compile=False)
    assert student.predict(["a bad film"], verbose=0).shape == (1, 2)


def test_language_model(run, tmp_path, capsys):
    text = "To be, or not to be, that is the question.\n" * 40
    (tmp_path / "tinyshakespeare.txt").write_text(text)
    names = run("language_model", "--data", tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("bits per character") == 3
    assert len(names["written"]) == 128
    assert (tmp_path / "student.keras").exists()


SMALLER = {"resnet(56)": "resnet(14)", "resnet(20)": "resnet(8)"}
PARTS = "weight", "bias", "running_mean", "running_var"


def state_of(model):
    """Return a ResNet's weights with the names and layout of PyTorch."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        f"{layer.name.replace('_', '.')}.{part}": array.transpose(
            axes[array.ndim]
        )
        for layer in model.layers
        if not isinstance(layer, keras.layers.Normalization)
        for part, array in zip(PARTS, layer.get_weights())
    }


def test_cifar10(run, tmp_path):
    """With a teacher that the example trains, and with published weights."""
    strip = noise(10 * 32, 32, 3)
    data, offsets = joined([encoded(strip, "webp", lossless=True)] * 2)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"webp_{split}"], arrays[f"offsets_{split}"] = data, offsets
        arrays[f"y_{split}"] = np.arange(20, dtype="uint8") % 10
    np.savez(tmp_path / "cifar10.npz", **arrays)
    given = "--data", tmp_path, "--epochs", 1
    names = run("cifar10", *given, changes=SMALLER)
    np.testing.assert_array_equal(names["x"].reshape(2, 320, 32, 3)[1], strip)
    assert (tmp_path / "cifar10_student.keras").exists()

    models = {20: names["student"], 56: names["teacher"]}
    for depth, model in models.items():
        state = state_of(model)
        np.savez(tmp_path / f"cifar10_resnet{depth}_state.npz", **state)
    again = run("cifar10", *given, changes=SMALLER)
    for old, new in (("teacher", "teacher"), ("student", "before")):
        same_outputs(names[old], again[new])


def test_flowers102(run, tmp_path, monkeypatch):
    pictures = noise(4, 160, 200, 3)
    data, offsets = joined([encoded(p, "jpeg") for p in pictures])
    np.savez(
        tmp_path / "flowers102_160.npz",
        jpeg=data,
        offsets=offsets,
        label=np.array([3, 101, 4, 1], "uint8"),
        split=np.array([0, 0, 2, 1], "uint8"),
    )

    def backbone(input_shape, include_top, pooling, weights):
        assert not include_top and weights == "imagenet"
        return cnn(size=input_shape[0], channels=3)

    monkeypatch.setattr(keras.applications, "MobileNetV2", backbone)
    names = run("flowers102", "--data", tmp_path, "--epochs", 1)
    assert names["x"].shape == (2, 160, 160, 3)
    assert list(names["y"]) == [3, 101] and list(names["y_test"]) == [4]
    assert (tmp_path / "flowers102_student.keras").exists()


@pytest.fixture
def make_notebooks(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import make_notebooks

    return make_notebooks


def test_notebooks_are_valid_and_complete(make_notebooks):
    import nbformat

    paths = make_notebooks.scripts()
    assert sorted([*(p.stem for p in paths), "make_notebooks"]) == SCRIPTS
    for path in paths:
        notebook = make_notebooks.notebook_of(path)
        nbformat.validate(notebook)
        install, *code = (
            cell.source for cell in notebook.cells if cell.cell_type == "code"
        )
        assert install.startswith("%pip install")
        cells = "\n".join(code).split("\n")
        lines = path.read_text().split('"""', 2)[2].split("\n")
        headings = [line for line in lines if line.startswith("# ## ")]
        assert len(headings) >= 3
        missing = {x for x in lines if x and not x.startswith("# ")}
        assert not missing - set(cells)


def test_a_notebook_runs(make_notebooks):
    notebook = make_notebooks.notebook_of(EXAMPLES / "quickstart.py")
    for cell in notebook.cells:
        cell.source = cell.source.replace("epochs=200", "epochs=2")
        cell.source = cell.source.replace("epochs=20,", "epochs=2,")
        cell.source = cell.source.replace("epochs=40,", "epochs=2,")
    done = make_notebooks.execute(notebook)
    outputs = [out for cell in done.cells for out in cell.get("outputs", ())]
    assert "agreement" in "".join(out.get("text", "") for out in outputs)
