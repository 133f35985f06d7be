"""Every block of code in the docs runs."""

import functools
import inspect
import pathlib
import sys

import keras
import pytest
import readme
from readme import blocks_of

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if "```python" in page.read_text()
)


# The code of these pages depends on the backend, or is what users try first.
# All other pages use what the suite tests on every backend, so they run on one.
# This is JAX if they train for long; else PyTorch, which does not compile.
ON_EVERY_BACKEND = (
    "index",
    "many-devices-and-mixed-precision",
    "offline-distillation",
    "teachers-from-other-frameworks",
    "write-your-own",
)
TRAINS_LONG = ("first-distillation",)
# This one trains many networks, and says nothing of their accuracy.
TRAINS_TWO_EPOCHS = ("shrink-for-a-microcontroller",)


def page_of(path):
    marks = ()
    if path.stem not in ON_EVERY_BACKEND:
        backend = "jax" if path.stem in TRAINS_LONG else "torch"
        marks = pytest.mark.one_backend(backend)
    return pytest.param(path, id=path.stem, marks=marks)


def two_epochs_of(fit):
    """Return `keras.Model.fit`, but with two epochs at most."""

    @functools.wraps(fit)
    def short(self, *args, **kwargs):
        given = inspect.signature(fit).bind(self, *args, **kwargs)
        given.apply_defaults()
        given.arguments["epochs"] = min(given.arguments["epochs"], 2)
        return fit(*given.args, **given.kwargs)

    return short


@pytest.mark.parametrize("page", [page_of(page) for page in PAGES])
def test_pages_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem in TRAINS_TWO_EPOCHS:
        monkeypatch.setattr(keras.Model, "fit", two_epochs_of(keras.Model.fit))
    namespace = {"__name__": page.stem}
    for block in blocks_of(page):
        exec(compile(block, str(page), "exec"), namespace)
    if page.stem == "first-distillation":
        history = namespace["history"].history
        assert history["val_accuracy"][-1] > 0.85
        assert "accuracy" not in history


def test_the_readme_runs_without_the_extras(tmp_path, monkeypatch):
    """As `make wheel` does, where nothing else is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    readme.run(ROOT / "README.md")
    assert (tmp_path / "student.keras").exists()
    assert (tmp_path / "student.packed").exists()
