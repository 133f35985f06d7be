"""`compare_widths`: the number of channels of each layer, before and after."""

import keras

from keras_distill._graphs._layers import layers_by_path
from keras_distill._graphs._walk import check_graph
from keras_distill._tables import html_table
from keras_distill._tables import text_table
from keras_distill.compression._models import layers_of
from keras_distill.compression._models import student_of

# The attributes with the number of channels that a layer makes.
_SETTINGS = ("filters", "units", "output_dim", "num_heads")


class Widths:
    """The widths of the layers of two models. `compare_widths` returns it.

    Args:
        widths: `{path of a layer: (before, after)}`. A width is None if the
            model has no such layer.
        parameters: `(before, after)`, the numbers of parameters.
    """

    def __init__(
        self,
        widths: dict[str, tuple[int | None, int | None]],
        parameters: tuple[int, int],
    ) -> None:
        self._widths = widths
        self._parameters = parameters

    def to_dict(self) -> dict[str, tuple[int | None, int | None]]:
        """Return `{path of a layer: (before, after)}`, a copy."""
        return dict(self._widths)

    def __str__(self) -> str:
        return text_table(self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._rows())

    def _rows(self):
        counts = {**self._widths, "all parameters": self._parameters}
        return [
            ["layer", "before", "after"],
            *(
                [path, *("-" if n is None else f"{n:,}" for n in pair)]
                for path, pair in counts.items()
            ),
        ]


def compare_widths(model: keras.Model, pruned: keras.Model) -> Widths:
    """Return the number of channels of each layer, before and after pruning.

    The result is a table: `print` it, or let a notebook display it as the last
    line of a cell. It has a row for each layer that makes channels
    (convolutions, Dense, Embedding, recurrent layers, and the heads of a
    MultiHeadAttention), and the numbers of parameters. Layers are matched by
    their path, such as `"backbone/conv_1"`.

    Models from `factorize` and `separate` can be compared too. A layer that
    only one of the models has shows "-" for the other.

    Args:
        model: the built functional or Sequential model before pruning; for a
            `Distiller`, its student.
        pruned: what `prune_channels` returned for it, perhaps trained since.

    Returns:
        An object with the method `to_dict()`, which returns
        `{path of a layer: (before, after)}`.

    Raises:
        ValueError: if a model has no layer graph, or if the models have no
            layer in common.

    Example:

    ```python
    import keras
    from keras_distill.compression import compare_widths, prune_channels

    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    print(compare_widths(model, prune_channels(model, 0.5)))
    # layer           before  after
    # hidden              16      8
    # logits               3      3
    # all parameters     195     99
    ```
    """
    model, pruned = student_of(model), student_of(pruned)
    before, after = _widths_of(model), _widths_of(pruned)
    if not before.keys() & after.keys():
        raise ValueError(
            "`compare_widths` requires a model and a pruned copy of it, with "
            "the same layer names. Received: models without a common layer, "
            f"{model.name!r} with {list(before)[:5]} and {pruned.name!r} with "
            f"{list(after)[:5]}"
        )
    paths = dict.fromkeys([*after, *before])
    return Widths(
        {path: (before.get(path), after.get(path)) for path in paths},
        (model.count_params(), pruned.count_params()),
    )


def _widths_of(model):
    """Return `{path: width}` of the layers in the graph that make channels."""
    check_graph("compare_widths", model)
    first_path = {}
    for path, layer in layers_by_path(model):
        first_path.setdefault(layer, path)
    widths = {}
    for layer in _makers(model):
        width = next(
            (getattr(layer, s) for s in _SETTINGS if hasattr(layer, s)), None
        )
        if isinstance(width, int):
            widths[first_path[layer]] = width
    return widths


def _makers(model):
    """Yield the layers that may make channels: of a Bidirectional, both."""
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Bidirectional):
            yield layer.forward_layer
            yield layer.backward_layer
        else:
            yield layer
