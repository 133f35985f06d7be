"""Every block of code in the docs runs."""

import pathlib
import re

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
    distil, compress = blocks_of(ROOT / "README.md")
    names = {
        "student": cnn(2, 128, 3),
        "teacher": cnn(4, 128, 3),
        "dataset": Batches(),
        "validation": Batches(),
        "x_test": np.zeros((4, 128, 128, 3), "float32"),
        "y_test": np.zeros(4, "int32"),
    }
    exec(distil.replace("epochs=1000", "epochs=1"), names)
    assert (tmp_path / "student.keras").exists()
    # The test of `compare` writes all files.
    exec(compress.replace("y_test))", "y_test), litert=())"), names)
    assert (tmp_path / "student.tflite").exists()
