"""The plot of a comparison: the size of each file against its accuracy."""

import os
from collections.abc import Mapping
from typing import Any

_FORMS = {
    "keras": (".keras", "o"),
    "litert_float32": ("LiteRT float32", "s"),
    "litert_float16": ("LiteRT float16", "D"),
    "litert_dynamic_int8": ("LiteRT dynamic int8", "v"),
    "litert_int8": ("LiteRT int8", "^"),
    "packed": ("packed", "*"),
}
# The palette of Okabe and Ito, for all kinds of color vision.
_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)


def draw(
    figures: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]
) -> None:
    """Write the plot to `path`, as `Comparison.plot` describes."""
    if not all("accuracy" in found for found in figures.values()):
        raise ValueError(
            "The plot requires an accuracy for each model. Received: models "
            "compared without data or with other metrics. Compare classifiers "
            "with data and without `metrics`: `compare(models, (x, y))`."
        )
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError(
            "`plot` requires matplotlib. Install it with: pip install "
            "matplotlib"
        ) from error
    # pyplot would need a display and keep the figure in memory.
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    forms = []
    for index, (name, found) in enumerate(figures.items()):
        points = _points(found)
        forms += points
        color = _COLORS[index % len(_COLORS)]
        line = sorted(points.values())
        axes.plot(*zip(*line), color=color, label=name, linewidth=1)
        for form, point in points.items():
            axes.plot(*point, _FORMS[form][1], **_hollow(color))
    for form in dict.fromkeys(forms):
        label, marker = _FORMS[form]
        axes.plot([], [], marker, label=label, **_hollow("0.3"))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.set_xlabel("size of the file")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def _hollow(color):
    # Hollow markers stay visible where several files have the same point.
    return {"color": color, "markerfacecolor": "none", "markersize": 8}


def _points(found):
    """Return `{form: (bytes, accuracy)}` of all files."""
    return {
        form: (
            found[f"{form}_bytes"],
            # Other files have the outputs of the model, so its accuracy too.
            100 * found.get(f"{form}_accuracy", found["accuracy"]),
        )
        for form in _FORMS
        if found.get(f"{form}_bytes") is not None
    }
