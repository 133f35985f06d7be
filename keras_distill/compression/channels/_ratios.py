"""The share of channels to remove from each group of coupled layers."""

from collections.abc import Iterable
from typing import TypeAlias

import keras
from keras.layers import Layer

from keras_distill import _arguments
from keras_distill._graphs._layers import layers_inside
from keras_distill._graphs._layers import values_by_layer

# One ratio for all layers, or `{layer: (name, ratio)}`.
Ratios: TypeAlias = float | dict[Layer, tuple[str, float]]


def check_ratio(model: keras.Model, ratio: float | dict[str, float]) -> Ratios:
    """Return the ratio for all layers, or `{layer: (name, ratio)}`.

    The ratio of a nested model is that of all layers in it, except for layers
    that have their own entry.
    """
    if not isinstance(ratio, dict):
        return _below_one("ratio", ratio)
    if not ratio:
        raise ValueError(
            f"`ratio` must name at least one layer. Received: ratio={ratio!r}"
        )
    named = {
        layer: (name, _below_one(f"ratio[{name!r}]", value))
        for layer, (name, value) in values_by_layer(
            model, ratio, "ratio"
        ).items()
    }
    # Outer layers first, so that entries of inner layers overwrite theirs.
    by_size = sorted(named, key=lambda layer: -len(layers_inside(layer)))
    return {
        layer: named[outer]
        for outer in by_size
        for layer in layers_inside(outer)
    }


def _below_one(name, value):
    value = _arguments.fraction(name, value)
    if value == 1:
        raise ValueError(
            f"`{name.split('[')[0]}` must be below 1, so that a channel is "
            f"left. Received: {name}={value!r}"
        )
    return value


def ratios_of(
    groups: Iterable[tuple[Layer, ...]], ratio: Ratios
) -> dict[tuple[Layer, ...], float]:
    """Return the ratio of each group.

    Args:
        groups: the groups of coupled layers whose channels can be removed.
        ratio: what `check_ratio` returned.

    Raises:
        ValueError: if a named layer has no channel that can be removed, or if
            layers of one group have different ratios.
    """
    if not isinstance(ratio, dict):
        if ratio > 0 and not groups:
            raise ValueError(f"The model has no channel {_KEPT}")
        return dict.fromkeys(groups, ratio)
    return _ratios_by_group(groups, ratio)


def _ratios_by_group(groups, named):
    unused = {name: value for name, value in named.values() if value > 0}
    ratios = {}
    for layers in groups:
        given = dict(named[layer] for layer in layers if layer in named)
        if len(set(given.values())) > 1:
            raise ValueError(
                "Coupled layers lose the same channels, so they must have the "
                f"same ratio. Received: {given} for the coupled layers "
                f"{[layer.name for layer in layers]}."
            )
        ratios[layers] = next(iter(given.values()), 0.0)
        for name in given:
            unused.pop(name, None)
    if unused:
        raise ValueError(
            f"`ratio` names layers without a channel {_KEPT} "
            f"Received: ratio={unused}"
        )
    return ratios


_KEPT = (
    "that can be removed. A channel is kept if it is an input or output of the "
    "model, if a layer needs all channels (such as softmax, or "
    "LayerNormalization without `through_layer_norm=True`), or if it is "
    "excluded, has no score, or is the only channel."
)
