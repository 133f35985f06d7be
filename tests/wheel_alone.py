"""Runs where only the wheel is installed: `make wheel`."""

import contextlib
import importlib.util
import pathlib
import tempfile

import keras
import numpy as np
import readme

import keras_distill

ROOT = pathlib.Path(__file__).parent.parent
assert not pathlib.Path(keras_distill.__file__).is_relative_to(
    ROOT / "keras_distill"
), "The checkout was imported, not the wheel."
assert (pathlib.Path(keras_distill.__file__).parent / "py.typed").exists()


def network(units):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])


x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
distiller = keras_distill.Distiller(
    student=network(3),
    teacher=[network(3), network(3)],
)
distiller.compile("adam")
distiller.fit(x, verbose=0)
keras_distill.compression.pack(distiller.student, "student.packed")
keras_distill.compression.unpack("student.packed").predict(x, verbose=0)
pathlib.Path("student.packed").unlink()
assert importlib.util.find_spec("ai_edge_litert") is None
with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    readme.run(ROOT / "README.md")
print(f"keras_distill {keras_distill.__version__} works from its wheel alone.")
