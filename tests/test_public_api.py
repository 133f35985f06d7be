"""The public names: listed, documented, registered, and pure Keras inside."""

import ast
import inspect
import pathlib
import re

import keras
import pytest

import keras_distill
from keras_distill import compression

PACKAGE = pathlib.Path(keras_distill.__file__).parent
ROOT = PACKAGE.parent

# Packages in the order of the top `__init__`: a file imports only from packages
# before its own. What stands first is shared.
PACKAGES = [
    "_typing",
    "_tables",
    "_keras_internals",
    "_arguments",
    "_files",
    "_processes",
    "_backend",
    "_gradients",
    "_schedules",
    "_graphs",
    "views",
    "losses",
    "teachers",
    "recording",
    "metrics",
    "distiller",
    "resuming",
    "compression",
    "reports",
    "shrinking",
    "__init__",
]
# `compression` imports nothing from distillation.
COMPRESSION_IMPORTS = {
    "_typing",
    "_tables",
    "_keras_internals",
    "_arguments",
    "_files",
    "_graphs",
    "compression",
}
# What differs between backends, the converter that TensorFlow alone has,
# processes of PyTorch, and its modules, which teach on every backend.
NAMES_BACKENDS = (
    "_backend.py",
    "_converter.py",
    "_converter_steps.py",
    "_gradients.py",
    "_processes.py",
    "_shuffles.py",
    "_torch_modules.py",
)

# Everything public, by the name after `keras_distill.`.
PUBLIC = {
    **{name: getattr(keras_distill, name) for name in keras_distill.__all__},
    **{
        f"compression.{name}": getattr(compression, name)
        for name in compression.__all__
    },
}
BASES = ("DistillationLoss",)


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize(
    "path", sources(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_every_module_is_private(path):
    assert path.stem.startswith("_")


@pytest.mark.parametrize("package", [keras_distill, compression])
def test_all_is_sorted_and_complete(package):
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert package.__all__ == sorted(package.__all__)
    assert set(package.__all__) == public


@pytest.mark.parametrize(
    "path", sources(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_layering(path):
    own = package_of(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            top, _, module = node.module.partition(".")
            if top == "keras_distill":
                package = module.split(".")[0] or node.names[0].name
                order = PACKAGES.index(package), PACKAGES.index(own)
                assert order[0] <= order[1], f"imports {package}"
                if own == "compression":
                    assert package in COMPRESSION_IMPORTS


def test_packages_stand_in_the_order_of_the_public_names():
    text = (PACKAGE / "__init__.py").read_text()
    imports = r"^from keras_distill(?:\.| import )(\w+)"
    order = list(dict.fromkeys(re.findall(imports, text, re.M)))
    assert order == [package for package in PACKAGES if package in order]
    described = re.findall(r"^- `(\w+)`:", text, re.M)
    assert [p for p in PACKAGES if (PACKAGE / p).is_dir()][1:] == described


@pytest.mark.parametrize(
    "path", sources(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_backends_are_imported_where_they_differ(path):
    text = path.read_text()
    assert "keras.src" not in text or path.name == "_keras_internals.py"
    backend_imports = re.findall(
        r"^\s*(?:import|from) (tensorflow|jax|torch)\b", text, re.M
    )
    assert not backend_imports or path.name in NAMES_BACKENDS


@pytest.mark.parametrize(
    "path", sources(), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_file_is_longer_than_a_reader_can_hold(path):
    lines = path.read_text().splitlines()
    documented = [
        node.body[0]
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and ast.get_docstring(node)
    ]
    docstrings = sum(d.end_lineno - d.lineno + 1 for d in documented)
    assert len(lines) - docstrings <= 400


def names_in(init):
    """Return the public names in an `__init__`, in their order."""
    return re.findall(r"(\w+) as \1\b", init.read_text())


def test_the_reference_has_every_public_name_in_the_order_of_init():
    nav = re.findall(r"reference/\w+\.md", (ROOT / "mkdocs.yml").read_text())
    pages = "".join((ROOT / "docs" / page).read_text() for page in nav)
    documented = re.findall(r"^::: keras_distill\.([\w.]+)", pages, re.M)
    expected = []
    for name in names_in(PACKAGE / "__init__.py"):
        inner = []
        if name == "compression":
            inner = names_in(PACKAGE / "compression/__init__.py")
        expected += [f"{name}.{each}" for each in inner] or [name]
    assert documented == expected
    assert sorted(documented) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_have_their_parts(name):
    docstring = PUBLIC[name].__doc__
    assert "Args:" in docstring
    assert "Example:" in docstring


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in BASES])
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docstring = PUBLIC[name].__doc__
    (code,) = re.findall(r"```python\n(.*?)```", docstring, re.S)
    exec("\n".join(line[4:] for line in code.splitlines()), {})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, thing in PUBLIC.items()
        if inspect.isclass(thing)
        and not issubclass(thing, keras.callbacks.Callback)
        and name not in (*BASES, "Comparison", "RecordedTeacher", "Shrunk")
    ],
)
def test_public_classes_are_registered(name):
    registered = keras.saving.get_registered_name(PUBLIC[name])
    assert registered == f"keras_distill>{name.split('.')[-1]}"


def test_the_changelog_knows_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{keras_distill.__version__}]" in changelog
