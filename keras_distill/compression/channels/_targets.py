"""Pruning to a target: which channels go first, and how many have to go."""

import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill import _arguments
from keras_distill._graphs._inference import infer
from keras_distill._graphs._macs import count_macs
from keras_distill.compression.channels._removable_channels import (
    RemovableChannels,
)
from keras_distill.compression.litert._before_training import as_if_trained
from keras_distill.compression.litert._export_litert import write_litert


def check_target(
    ratio: Any, scope: str, limits: dict[str, Any]
) -> tuple[str, int] | None:
    """Return the limit that was given, as `(name, value)`; `None` for a ratio.

    Args:
        ratio, scope: as in `prune_channels`.
        limits: `macs`, `parameters` and `bytes` of `prune_channels`, by name.

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
            "Pass exactly one of `ratio`, `macs`, `parameters` and `bytes`. "
            f"Received: {given}"
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


def removal_order(channels: RemovableChannels, scope: str) -> np.ndarray:
    """Return the channels that can be removed, the first to go first.

    The best channel of each group is not among them.

    Args:
        channels: all channels of a model.
        scope: as in `prune_channels`.
    """
    ordered, keys = [np.zeros(0, "int64")], [np.zeros(0)]
    for group in channels.groups.values():
        members = np.array(group)
        scores = channels.scores[members]
        members = members[np.argsort(scores, kind="stable")]
        if scope == "group":
            key = np.arange(1, len(members) + 1) / len(members)
        else:
            key = np.sort(scores) / (np.abs(scores).mean() or 1.0)
        ordered.append(members[:-1])
        keys.append(key[:-1])
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.concatenate(ordered)[order]


def to_limit(
    channels: RemovableChannels, order: np.ndarray, limit: tuple[str, int]
) -> keras.Model:
    """Return the model without as few channels as the limit allows.

    Args:
        channels: all channels of the model.
        order: the channels that can be removed, the first to go first.
        limit: `(name, value)`, as `check_target` returns it.

    Raises:
        ValueError: if the limit cannot be reached.
    """
    name, value = limit
    number = fewest_removed(channels, order, lambda m: cost(m, name) / value)
    if number is None:
        smallest = cost(channels.model_without(order), name)
        raise ValueError(
            f"The smallest model that pruning can make has {smallest:,} "
            f"{_TITLES[name]}. Received: {name}={value}. Use a smaller model, "
            "or other methods as well."
        )
    return channels.model_without(order[:number])


def fewest_removed(
    channels: RemovableChannels,
    order: np.ndarray,
    excess: Callable[[keras.Model], float],
) -> int | None:
    """Return how many channels have to go until the model fits.

    Args:
        channels: all channels of the model.
        order: the channels that can be removed, the first to go first.
        excess: function of a model that returns its costs divided by the limit.
            It must not rise with the number of removed channels.

    Returns:
        The number, or None if the smallest model does not fit.
    """
    return first_that_fits(
        lambda number: excess(channels.model_without(order[:number])),
        len(order),
    )


def first_that_fits(excess: Callable[[int], float], last: int) -> int | None:
    """Return the smallest number whose costs are within the limit.

    Most costs fall with the square of the number, because a kernel loses inputs
    and outputs. So the next one to try is interpolated between square roots
    (the Illinois method), which takes half as many tries as halving.

    Args:
        excess: function of a number that returns costs divided by the limit. It
            must not rise.
        last: the largest number.

    Returns:
        The number, from 0 to `last`, or None if the last one does not fit.
    """
    low, high = 0, last

    def over(number):
        return math.sqrt(excess(number)) - 1

    at_low, at_high = over(low), over(high)
    if at_low <= 0:
        return low
    if at_high > 0:
        return None
    last_fits = None
    while high - low > 1:
        step = round((high - low) * at_low / (at_low - at_high))
        middle = min(max(low + step, low + 1), high - 1)
        at_middle = over(middle)
        fits = at_middle <= 0
        # Twice on the same side: the other end pulls less, so that it moves.
        if fits:
            high, at_high = middle, at_middle
            at_low /= 2 if last_fits is True else 1
        else:
            low, at_low = middle, at_middle
            at_high /= 2 if last_fits is False else 1
        last_fits = fits
    return high


_TITLES = {
    "macs": "MACs",
    "parameters": "parameters",
    "bytes": "bytes as a LiteRT file in int8",
}


def cost(model: keras.Model, name: str) -> int:
    """Return the MACs, the parameters or the bytes of a model.

    The bytes are those of its LiteRT file in int8, after training.
    """
    if name == "parameters":
        return model.count_params()
    if name == "bytes":
        return _litert_bytes(model)
    macs = count_macs(infer(model).calls)
    if macs.all is None:
        raise ValueError(
            "The MACs of some layers are unknown, so `macs` cannot be used. "
            f"Received: a model with {macs.uncounted}. Use `parameters` or "
            "`ratio`."
        )
    return macs.all


def _litert_bytes(model):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.tflite")
        write_litert(as_if_trained(model, is_int8=True), path, "int8", None)
        return path.stat().st_size
