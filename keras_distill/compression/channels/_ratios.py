"""Which share of its channels each group of coupled layers loses."""

from keras_distill import _arguments
from keras_distill._graphs._layers import layers_inside
from keras_distill._graphs._layers import values_by_layer


def check_ratio(model, ratio):
    """Return the ratio for all layers, or `{layer: (name, ratio)}`.

    A nested model stands for the layers in it, apart from those with a ratio of
    their own.
    """
    if not isinstance(ratio, dict):
        return _below_one("ratio", ratio)
    if not ratio:
        raise ValueError(f"`ratio` names no layer. Received: ratio={ratio!r}")
    named = {
        layer: (name, _below_one(f"ratio[{name!r}]", value))
        for layer, (name, value) in values_by_layer(
            model, ratio, "ratio"
        ).items()
    }
    # The outer ones first, to be overruled.
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
            f"`{name.split('[')[0]}` must be below 1, or no channel would be "
            f"left. Received: {name}={value!r}"
        )
    return value


def ratios_of(groups, ratio):
    """Return the ratio of each group.

    Args:
        groups: iterable of tuples of layers, those that could lose channels.
        ratio: what `check_ratio` returned.

    Raises:
        ValueError: if a layer that was given a ratio has no channel that could
            be removed, or layers of a group were given different ones.
    """
    if not isinstance(ratio, dict):
        if ratio > 0 and not groups:
            raise ValueError(f"There is no channel {_STAYS}")
        return dict.fromkeys(groups, ratio)
    return _by_name(groups, ratio)


def _by_name(groups, named):
    idle = {name: value for name, value in named.values() if value > 0}
    ratios = {}
    for layers in groups:
        given = dict(named[layer] for layer in layers if layer in named)
        if len(set(given.values())) > 1:
            raise ValueError(
                "Layers that are coupled lose the same channels, so they need "
                f"the same ratio. Received: {given} for the group "
                f"{[layer.name for layer in layers]}."
            )
        ratios[layers] = next(iter(given.values()), 0.0)
        for name in given:
            idle.pop(name, None)
    if idle:
        raise ValueError(
            f"`ratio` names layers without a channel {_STAYS} "
            f"Received: ratio={idle}"
        )
    return ratios


_STAYS = (
    "that could be removed: each is an input or an output of the model, goes "
    "through a layer that needs all of them, is excluded, has no score, or is "
    "the only one."
)
