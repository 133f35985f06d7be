"""The result of `shrink`."""

import os
import pathlib
import shutil

import keras

from keras_distill import _files
from keras_distill.reports import Comparison


class Shrunk:
    """The network that `shrink` chose, and the figures of all candidates.

    `print` it for a table, or let a notebook display it as the last line of a
    cell.

    Args:
        name: the name of the candidate that was chosen.
        model: its trained network.
        path: its file.
        comparison: the figures of the original network and all candidates.

    Attributes:
        name: as above.
        model: the trained Keras model. In `"int8"`, it is the copy that
            `quantize_aware` returned, which rounds like the file.
        comparison: as above, with `to_dict()` and `to_markdown()`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import shrink

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(64, "relu"),
         keras.layers.Dense(3)]
    )
    x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
    result = shrink(
        model, x, validation=(x, y), directory="shrunk", epochs=1,
        max_macs=300, precision="packed", verbose=0,
    )
    print(result.name, result.comparison.to_dict()[result.name]["macs"])
    ```
    """

    def __init__(
        self,
        name: str,
        model: keras.Model,
        path: pathlib.Path,
        comparison: Comparison,
    ) -> None:
        self.name, self.model, self.comparison = name, model, comparison
        self._path = path

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the file that was measured.

        Args:
            path: path of the file. An older file is replaced.

        Raises:
            ValueError: if the folder of the file does not exist.
        """
        target = _files.writable(path)
        with open(self._path, "rb") as source:
            _files.write(target, lambda out: shutil.copyfileobj(source, out))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot the size of each file against its accuracy.

        Args:
            path: path of the image, as in `Comparison.plot`.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the figures have no accuracy.
        """
        self.comparison.plot(path)

    def __str__(self) -> str:
        return f"{self.comparison}\n{self._chosen}"

    def _repr_html_(self) -> str:
        return f"{self.comparison._repr_html_()}<p>{self._chosen}</p>"

    @property
    def _chosen(self):
        return f"Chosen on the validation data: {self.name}"
