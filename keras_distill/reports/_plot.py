"""The size of files against their accuracy."""

_FORMS = {
    "keras": (".keras", "o"),
    "litert_float32": ("LiteRT float32", "s"),
    "litert_float16": ("LiteRT float16", "D"),
    "litert_dynamic_int8": ("LiteRT dynamic int8", "v"),
    "litert_int8": ("LiteRT int8", "^"),
    "packed": ("packed", "*"),
}
# Told apart by all kinds of colour vision: Okabe and Ito.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)


def draw(figures, path):
    """Write the plot to `path`. See `Comparison.plot`."""
    if not all("accuracy" in found for found in figures.values()):
        raise ValueError(
            "The plot needs accuracies, and the models were compared without "
            "data, or by other metrics. Give `compare` data of a classifier: "
            "`compare(models, (x, y))`."
        )
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError(
            "`plot` needs matplotlib: pip install matplotlib"
        ) from error
    # Without pyplot, which would ask for a screen and keep the figure.
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    forms = []
    for index, (name, found) in enumerate(figures.items()):
        points = _points(found)
        forms += points
        colour = _COLOURS[index % len(_COLOURS)]
        line = sorted(points.values())
        axes.plot(*zip(*line), color=colour, label=name, linewidth=1)
        for form, point in points.items():
            axes.plot(*point, _FORMS[form][1], **_hollow(colour))
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


def _hollow(colour):
    # Files of one size and accuracy are seen through each other.
    return {"color": colour, "markerfacecolor": "none", "markersize": 8}


def _points(found):
    """Return `{form: (bytes, accuracy)}` of the files that there are."""
    return {
        form: (
            found[f"{form}_bytes"],
            # Those without an own one compute what the model does.
            100 * found.get(f"{form}_accuracy", found["accuracy"]),
        )
        for form in _FORMS
        if found.get(f"{form}_bytes") is not None
    }
