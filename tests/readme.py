"""Runs the README's blocks of code, unchanged."""

import importlib.util
import re

import keras
import numpy as np
from keras import layers

CLASSES = 5


def blocks_of(page):
    """Return the blocks of a page whose packages are installed."""
    start = r'^```python(?: title="Needs (.*?)")?\n'
    return [
        block
        for needs, block in re.findall(
            start + r"(.*?)^```", page.read_text(), re.S | re.M
        )
        if all(importlib.util.find_spec(n) for n in needs.split(" and ") if n)
    ]


def run(page):
    """Run all blocks in the current folder, with what they take as given."""
    names = {}
    names |= {
        "student": _network(2),
        "teacher": _network(4),
        "dataset": _OneEpoch(names),
        "validation": _Batches(),
        "x_test": np.zeros((4, 128, 128, 3), "float32"),
        "y_test": np.zeros(4, "int32"),
    }
    for block in blocks_of(page):
        exec(compile(block, str(page), "exec"), names)


def _network(width):
    return keras.Sequential(
        [
            keras.Input((128, 128, 3)),
            layers.Conv2D(width, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )


class _Batches(keras.utils.PyDataset):
    """One batch."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        images = np.random.default_rng(index).uniform(size=(8, 128, 128, 3))
        return images.astype("float32"), np.zeros(8, "int32")


class _OneEpoch(_Batches):
    """Ends the `fit()` that reads it, whatever its `epochs`."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def on_epoch_end(self):
        self.names["distiller"].stop_training = True
