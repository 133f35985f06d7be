"""Every block of code in the docs runs, and every example does."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from common import cnn

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if "```python" in page.read_text()
)


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_pages_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for block in blocks_of(page):
        exec(compile(block, str(page), "exec"), namespace)
    if page.stem == "first-distillation":
        history = namespace["history"].history
        assert history["val_accuracy"][-1] > 0.85
        assert "accuracy" not in history


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        images = np.random.default_rng(index).uniform(size=(8, 128, 128, 3))
        return images.astype("float32"), np.zeros(8, "int32")


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks_of(ROOT / "README.md")
    names = {
        "student": cnn(2, 128, 3),
        "teacher": cnn(4, 128, 3),
        "dataset": Batches(),
        "validation": Batches(),
    }
    exec(block.replace("epochs=1000", "epochs=1"), names)
    assert (tmp_path / "student.keras").exists()


@pytest.mark.parametrize("example", ["digits.py", "mnist.py"])
def test_examples_in_smoke_mode(example, tmp_path):
    data = {
        name: np.zeros((300, 28, 28), "uint8")
        if name.startswith("x")
        else np.zeros(300, "uint8")
        for name in ("x_train", "y_train", "x_test", "y_test")
    }
    np.savez(tmp_path / "mnist.npz", **data)
    arguments = {
        "digits.py": ["--out", tmp_path],
        "mnist.py": ["--data", tmp_path, "--workdir", tmp_path / "run"],
    }[example]
    subprocess.run(
        [sys.executable, ROOT / "examples" / example, "--smoke", *arguments],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
    )
    if example == "digits.py":
        assert (tmp_path / "demo.png").stat().st_size > 10_000
        keras.models.load_model(tmp_path / "demo_student.keras")
    else:
        assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_wrong_data_for_the_example(content, tmp_path):
    if content is not None:
        (tmp_path / "mnist.npz").write_bytes(content)
    command = [sys.executable, ROOT / "examples/mnist.py", "--data", tmp_path]
    result = subprocess.run(
        [*command, "--workdir", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 1
    expected = "There is no" if content is None else "is no MNIST archive"
    assert expected in result.stderr and "x_train" in result.stderr
