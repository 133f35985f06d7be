"""The public names: listed, documented, registered, and pure Keras inside."""

import ast
import pathlib
import re

import keras
import pytest

import keras_distill

PACKAGE = pathlib.Path(keras_distill.__file__).parent
ROOT = PACKAGE.parent

# A file may import only from chapters before its own.
CHAPTERS = [
    "_arguments",
    "_backend",
    "_features",
    "_outputs",
    "views",
    "losses",
    "teachers",
    "metrics",
    "checks",
    "logs",
    "hints",
    "saving",
    "batches",
    "replay",
    "distiller",
    "__init__",
]


FUNCTIONS = ("RecordedTeacher", "fold_batch_norm", "record_teacher")


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def chapter_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_all_is_sorted_and_complete():
    public = [name for name in vars(keras_distill) if not name.startswith("_")]
    modules = {chapter.strip("_") for chapter in CHAPTERS}
    assert keras_distill.__all__ == sorted(keras_distill.__all__)
    assert set(keras_distill.__all__) == set(public) - modules


@pytest.mark.parametrize(
    "path", sources(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_layering(path):
    own = CHAPTERS.index(chapter_of(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            if package == "keras_distill":
                chapter = module.split(".")[0] or node.names[0].name
                assert CHAPTERS.index(chapter) <= own, f"imports {chapter}"


@pytest.mark.parametrize(
    "path", sources(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_backends_are_imported_in_one_place(path):
    text = path.read_text()
    assert "keras.src" not in text
    backend_imports = re.findall(
        r"^\s*(?:import|from) (tensorflow|jax|torch)\b", text, re.M
    )
    assert not backend_imports or path.name == "_backend.py"
    assert len(text.splitlines()) <= 400


def test_every_public_name_is_in_the_reference():
    pages = "".join(p.read_text() for p in (ROOT / "docs").rglob("*.md"))
    documented = set(re.findall(r"^::: keras_distill\.(\w+)", pages, re.M))
    assert documented == set(keras_distill.__all__)


@pytest.mark.parametrize("name", keras_distill.__all__)
def test_docstrings_have_their_parts(name):
    docstring = getattr(keras_distill, name).__doc__
    assert "Args:" in docstring
    assert "Example:" in docstring


@pytest.mark.parametrize(
    "name", [n for n in keras_distill.__all__ if n != "DistillationLoss"]
)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docstring = getattr(keras_distill, name).__doc__
    (code,) = re.findall(r"```python\n(.*?)```", docstring, re.S)
    exec("\n".join(line[4:] for line in code.splitlines()), {})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in keras_distill.__all__
        if name not in ("DistillationLoss", *FUNCTIONS)
    ],
)
def test_public_classes_are_registered(name):
    registered = keras.saving.get_registered_name(getattr(keras_distill, name))
    assert registered == f"keras_distill>{name}"


def test_the_changelog_knows_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{keras_distill.__version__}]" in changelog
