"""What `compare` found, as a table, as a dict and as a plot."""

import math

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
    """What `compare` found: `print` it for a table.

    Args:
        figures: `{name of a model: {key: number}}`, as `compare` lists the
            keys. One that another model has and this one has not is None.
        notes: list of sentences that say why.

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

    def __init__(self, figures, notes=()):
        keys = dict.fromkeys(key for f in figures.values() for key in f)
        self._figures = {
            name: {key: found.get(key) for key in keys}
            for name, found in figures.items()
        }
        self.notes = list(notes)

    def to_dict(self):
        """Return `{name of a model: {key: number}}`, a copy."""
        return {name: dict(found) for name, found in self._figures.items()}

    def __str__(self):
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
            )
            for row in rows
        ]
        return "\n".join([*lines, *self.notes])

    def to_markdown(self):
        """Return the table in Markdown, with the notes below it."""
        head, *rows = self._rows()
        rule = ["---", *("---:" for _ in head[1:])]
        lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def plot(self, path):
        """Draw the size of every file against its accuracy.

        Args:
            path: where to write; its ending says in which format (`.png`,
                `.svg`, `.pdf`).

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the models were compared without data.
        """
        from keras_distill.reports._plot import draw

        draw(self._figures, path)

    def _rows(self):
        """Return the table as rows of strings."""
        first = next(iter(self._figures.values()))
        # The ends of a range stand beside its middle.
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
    """Return a number with three digits, or as many as it has."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(decimals, 0)}f}"
