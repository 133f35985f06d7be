"""The result of `compare`: as a table, as a dict and as a plot."""

import math
import os
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from keras_distill._tables import html_table
from keras_distill._tables import markdown_table
from keras_distill._tables import text_table
from keras_distill.reports._plot import draw

_WORDS = {
    "nonzero_parameters": "non-zero parameters",
    "macs": "MACs",
    "peak_activation": "peak activations",
    "keras": ".keras",
    "energy_float32": "energy estimate, float32",
    "energy_int8": "energy estimate, int8",
    "energy_packed": "energy estimate, packed",
}
_UNITS = {"bytes": "bytes", "ms": "ms", "uj": "µJ"}


class Comparison:
    """The figures of several models, side by side.

    `print` it for a table, or let a notebook display it as the last line of a
    cell.

    Args:
        figures: `{name of a model: {key: number}}`, with the keys that
            `compare` lists. A key that only other models have becomes None.
        notes: sentences below the table, such as why a figure is None.

    Example:

    ```python
    import keras
    from keras_distill import compare

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    report = compare([model], litert=())
    print(report.to_markdown())
    print(report.to_dict()[model.name]["macs"])  # 24
    ```
    """

    def __init__(
        self,
        figures: Mapping[str, Mapping[str, Any]],
        notes: Iterable[str] = (),
    ) -> None:
        keys = dict.fromkeys(key for f in figures.values() for key in f)
        self._figures = {
            name: {key: found.get(key) for key in keys}
            for name, found in figures.items()
        }
        self.notes = list(notes)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return `{name of a model: {key: number}}`, a copy."""
        return {name: dict(found) for name, found in self._figures.items()}

    def __str__(self) -> str:
        return "\n".join([text_table(self._rows()), *self.notes])

    def to_markdown(self) -> str:
        """Return the table in Markdown, with the notes below it."""
        notes = (f"\n{note}" for note in self.notes)
        return "\n".join([markdown_table(self._rows()), *notes])

    def _repr_html_(self) -> str:
        return html_table(self._rows(), self.notes)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot the size of each file against its accuracy.

        Args:
            path: path of the image. Its suffix sets the format (`.png`, `.svg`,
                `.pdf`).

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the figures have no accuracy.
        """
        draw(self._figures, path)

    def _rows(self):
        """Return the table as rows of strings."""
        first = next(iter(self._figures.values()))
        # `_cell` puts the ends of a range beside its median.
        keys = [key for key in first if not key.endswith(("_low", "_high"))]
        return [
            ["", *self._figures],
            *(
                [_label(key), *(_cell(key, f) for f in self._figures.values())]
                for key in keys
            ),
        ]


def _label(key):
    stem, _, unit = key.rpartition("_")
    if unit in _UNITS:
        return f"{_label(stem)}, {_UNITS[unit]}"
    if key.endswith("_zipped"):
        return f"{_label(key.removesuffix('_zipped'))}, zipped"
    return _WORDS.get(key, key.replace("litert", "LiteRT").replace("_", " "))


def _cell(key, figures):
    value = figures[key]
    if value is None:
        return "-"
    if f"{key}_low" in figures:
        low, high = figures[f"{key}_low"], figures[f"{key}_high"]
        return f"{_short(value)} ({_short(low)} to {_short(high)})"
    if key.endswith(("accuracy", "agreement")):
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else _short(value)


def _short(value):
    """Return a number with three significant digits, or all integer digits."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(decimals, 0)}f}"
