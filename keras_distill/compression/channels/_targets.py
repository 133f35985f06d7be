"""Pruning to a target: which channels go first, and how many have to go."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill import _arguments
from keras_distill._graphs._inference import infer
from keras_distill._graphs._macs import count_macs


def check_target(
    ratio: Any, scope: str, limits: dict[str, Any]
) -> tuple[str, int] | None:
    """Return the limit that was given, as `(name, value)`; `None` for a ratio.

    Args:
        ratio, scope: as in `prune_channels`.
        limits: `macs` and `parameters` of `prune_channels`, by name.

    Raises:
        ValueError: unless exactly one of them is given.
    """
    if scope not in ("group", "global"):
        raise ValueError(
            f"`scope` must be 'group' or 'global'. Received: scope={scope!r}"
        )
    given = {"ratio": ratio, **limits}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            "Pass exactly one of `ratio`, `macs` and `parameters`. Received: "
            f"{given}"
        )
    if "ratio" not in given:
        ((name, value),) = given.items()
        return name, _arguments.positive_int(name, value)
    if isinstance(ratio, dict) and scope == "global":
        raise ValueError(
            "A dict gives a ratio to each layer, so it requires scope='group'. "
            f"Received: scope='global', ratio={ratio!r}"
        )
    return None


def removal_order(
    groups: list[list[int]], scores: np.ndarray, scope: str
) -> np.ndarray:
    """Return the channels that can be removed, the first to go first.

    The best channel of each group is not among them.

    Args:
        groups: the channels of each group.
        scores: the score of each channel.
        scope: as in `prune_channels`.
    """
    channels, keys = [np.zeros(0, "int64")], [np.zeros(0)]
    for group in groups:
        members = np.array(group)
        members = members[np.argsort(scores[members], kind="stable")]
        if scope == "group":
            key = np.arange(1, len(members) + 1) / len(members)
        else:
            mean = np.abs(scores[members]).mean()
            key = scores[members] / (mean or 1.0)
        channels.append(members[:-1])
        keys.append(key[:-1])
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.concatenate(channels)[order]


def fewest_removed(
    available: int,
    model_without: Callable[[int], keras.Model],
    limit: tuple[str, int],
) -> keras.Model:
    """Return the model without as few channels as the limit allows.

    Args:
        available: how many channels can be removed.
        model_without: function of a number of channels that returns the model
            without the first of them.
        limit: `(name, value)`, as `check_target` returns it.

    Raises:
        ValueError: if the limit cannot be reached.
    """
    name, value = limit
    model = model_without(available)
    if (smallest := _cost(model, name)) > value:
        raise ValueError(
            f"The smallest model that pruning can make has {smallest:,} "
            f"{_TITLES[name]}. Received: {name}={value}. Use a smaller model, "
            "or other methods as well."
        )
    low, high = 0, available
    while low < high:
        middle = (low + high) // 2
        candidate = model_without(middle)
        if _cost(candidate, name) <= value:
            high, model = middle, candidate
        else:
            low = middle + 1
    return model


_TITLES = {"macs": "MACs", "parameters": "parameters"}


def _cost(model, name):
    if name == "parameters":
        return model.count_params()
    macs = count_macs(infer(model).calls)
    if macs.all is None:
        raise ValueError(
            "The MACs of some layers are unknown, so `macs` cannot be used. "
            f"Received: a model with {macs.uncounted}. Use `parameters` or "
            "`ratio`."
        )
    return macs.all
