"""The examples run, read real archives, and say what is wrong with others."""

import io
import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

from keras_distill.compression import unpack

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(example, folder, *arguments, check=True):
    return subprocess.run(
        [sys.executable, EXAMPLES / example, *map(str, arguments)],
        check=check,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )


def test_digits(tmp_path):
    run("digits.py", tmp_path, "--smoke", "--out", tmp_path)
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    keras.models.load_model(tmp_path / "demo_student.keras")


def test_torch_teacher(tmp_path):
    arguments = ["--epochs", 2, "--recorded-epochs", 1, "--smoke"]
    run("torch_teacher.py", tmp_path, *arguments, "--workdir", "runs")
    file = tmp_path / f"runs/{keras.backend.backend()}.json"
    results = json.loads(file.read_text())
    first, last = results["curve"]
    assert last["loss"] < first["loss"]
    limit = 1e-3 * results["largest_logit"]
    assert results["largest_error_of_recording"] < limit


def test_compare_losses(tmp_path):
    out = tmp_path / "losses.json"
    run("compare_losses.py", tmp_path, "--smoke", "--out", out)
    assert len(json.loads(out.read_text())["rows"]) == 13


@pytest.mark.parametrize("example", ["regression.py", "multi_label.py"])
def test_values_and_labels(example, tmp_path):
    out = tmp_path / "results.json"
    run(example, tmp_path, "--smoke", "--out", out)
    rows = json.loads(out.read_text())["rows"]
    assert {len(row) for row in rows.values()} == {1}
    assert any("no labels" in name for name in rows)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="elsewhere, each of the five files takes another process",
)
def test_int8(tmp_path):
    lines = run("int8.py", tmp_path, "--smoke").stdout.splitlines()
    assert sum("bytes, file" in line for line in lines) == 5
    assert len(list((tmp_path / "runs").glob("*.tflite"))) == 5


def test_consistency(tmp_path):
    run("consistency.py", tmp_path, "--smoke")
    curves = json.loads((tmp_path / "consistency.json").read_text())["curves"]
    assert len(curves) == 4
    assert all(len(curve["test_accuracy"]) == 1 for curve in curves.values())


def test_compare_resnet20(tmp_path):
    run("compare_resnet20.py", tmp_path, "--smoke")
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
def test_images_in_smoke_mode(arguments, tmp_path):
    example, *others = arguments
    arguments = [*others, "--smoke", "--workdir", "runs"]
    run(example, tmp_path, *arguments)
    (row,) = json.loads((tmp_path / "runs/results.json").read_text())
    assert 0 <= row["accuracy"] <= 1 and 0 <= row["agreement"] <= 1
    assert (tmp_path / "runs/curves.png").stat().st_size > 5_000
    student = keras.models.load_model(tmp_path / f"runs/{row['name']}.keras")
    assert student.count_params() == row["parameters"]
    again = run(example, tmp_path, *arguments).stdout
    assert f"{row['name']}.keras" in again and "Training" not in again


def test_the_pages_show_the_results():
    import tables

    for path, text in tables.pages().items():
        assert path.read_text() == text, "Run `python examples/tables.py`."


def test_prune_resnet(tmp_path):
    run("prune_resnet.py", tmp_path, "--smoke")
    rows = json.loads((tmp_path / "runs/results.json").read_text())
    pruned, taught = rows
    assert pruned["epochs"] == 0 and taught["epochs"] == 1
    assert taught["parameters"] < 0.3 * taught["teacher_parameters"]
    if keras.backend.backend() == "tensorflow":
        # Elsewhere, each file of a report takes another process.
        run("prune_resnet.py", tmp_path, "--smoke", "--report")
        assert "accuracy" in (tmp_path / "runs/comparison.md").read_text()


def test_share_resnet(tmp_path):
    run("share_resnet.py", tmp_path, "--smoke")
    (row,) = json.loads((tmp_path / "runs/results.json").read_text())
    packed = tmp_path / f"runs/{row['name']}.packed"
    kernels = [w for w in unpack(packed).get_weights() if w.ndim == 4]
    assert max(len(np.unique(kernel)) for kernel in kernels) == 8
    assert packed.stat().st_size < 4 * row["parameters"] / 8


def test_deep_compression(tmp_path):
    arguments = ["--network", "lenet_5", "--smoke", "--workdir", "runs"]
    run("deep_compression.py", tmp_path, *arguments)
    rows = json.loads((tmp_path / "runs/results.json").read_text())
    dense, pruned, shared = rows
    assert dense["zeros"] < 0.01 and pruned["zeros"] > 0.9
    assert shared["bytes"] < pruned["bytes"] / 3 < dense["bytes"] / 3
    assert shared["bytes"] < shared["zlib_bytes"]
    # Another setting goes on from the stages that it shares.
    run("deep_compression.py", tmp_path, *arguments, "--num-clusters", "3")
    names = {path.name for path in (tmp_path / "runs").glob("*.keras")}
    assert len(names) == 4 and sum("shared" in name for name in names) == 2


def test_lenets_are_those_that_papers_compress():
    import deep_compression

    assert deep_compression.lenet_300_100().count_params() == 266_610
    assert deep_compression.lenet_5().count_params() == 431_080


def test_a_network_of_other_settings_is_refused(tmp_path, monkeypatch):
    import experiment_results

    rows = [{"name": "alone", "command": "python examples/mnist.py"}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    settings = types.SimpleNamespace(workdir=tmp_path)
    monkeypatch.setattr(sys, "argv", ["mnist.py"])
    experiment_results.refuse_other_settings("alone", settings)
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "5"])
    with pytest.raises(SystemExit, match="--epochs 5"):
        experiment_results.refuse_other_settings("alone", settings)


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


def test_a_wrong_folder_ends_the_program_with_one_line(tmp_path):
    done = run("mnist.py", tmp_path, "--data", "nowhere", check=False)
    assert done.returncode == 1
    assert "There is no nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def torch_resnet(depth):
    """The network of the published CIFAR-10 states, written in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, narrow, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(narrow, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.pad = (width - narrow) // 2
            self.stride = stride

        def forward(self, x):
            shortcut = x[:, :, :: self.stride, :: self.stride]
            pad = (0, 0, 0, 0, self.pad, self.pad)
            shortcut = nn.functional.pad(shortcut, pad)
            x = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(x)) + shortcut)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            blocks = (depth - 2) // 6
            for stage in (1, 2, 3):
                width = 8 * 2**stage
                narrow = width if stage == 1 else width // 2
                first = Block(narrow, width, 1 if stage == 1 else 2)
                rest = [Block(width, width, 1) for _ in range(blocks - 1)]
                setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    torch.manual_seed(0)
    network = Network()
    for name, value in network.state_dict().items():
        if value.ndim == 1 and "running_mean" not in name:
            value.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("depth", [20, 56])
def test_the_published_resnets(depth, tmp_path):
    import cifar10
    import torch

    reference = torch_resnet(depth)
    state = {
        name: value.numpy()
        for name, value in reference.state_dict().items()
        if "num_batches" not in name
    }
    file = f"cifar10_resnet{depth}_state.npz"
    np.savez(tmp_path / file, **state)
    model = cifar10.pretrained(depth, tmp_path)
    x = images(4)
    mean, deviation = np.array(cifar10.MEAN), np.array(cifar10.DEVIATION)
    normalized = ((x / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = reference(torch.tensor(normalized, dtype=torch.float32))
    expected = expected.cpu().numpy()
    scale = np.abs(expected).max()
    answers = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(answers / scale, expected / scale, atol=1e-5)
    loaded = model.count_params() - sum(
        keras.ops.size(w)
        for layer in model.layers
        if layer.name.endswith("_pad")
        for w in layer.weights
    )
    assert int(loaded) == sum(value.size for value in state.values())


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
