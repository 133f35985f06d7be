"""The budget of a device: limits, and what a model takes of them."""

import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from keras_distill import _arguments
from keras_distill.compression.channels._targets import cost
from keras_distill.compression.litert._arena import arena_bytes
from keras_distill.compression.litert._arena import micro_is_installed
from keras_distill.compression.litert._before_training import as_if_trained
from keras_distill.reports._measure import measure_latency
from keras_distill.reports._measure import write_form

_TITLES = {
    "max_bytes": "bytes of the file (with 0.5 % to spare)",
    "max_ms": "ms",
    "max_macs": "MACs",
    "max_parameters": "parameters",
    "max_arena_bytes": "bytes of the arena",
}
# Known from the graph, without a file.
_OF_GRAPHS = {"max_macs": "macs", "max_parameters": "parameters"}
_ROUNDS = 5
# Files of the same network differ by some bytes: of padding, and because other
# weights compress differently.
_SPARE = 0.005


def check_limits(limits: dict[str, Any], form: str) -> dict[str, float]:
    """Return the limits that are given.

    Raises:
        ImportError: if a limit requires a package that is not installed.
        ValueError: if there is none, if a limit is not a positive number, or
            if packed files would have to run.
    """
    given: dict[str, float] = {
        name: (
            _arguments.positive_float(name, value)
            if name == "max_ms"
            else _arguments.positive_int(name, value)
        )
        for name, value in limits.items()
        if value is not None
    }
    if not given:
        raise ValueError(
            f"A budget requires at least one of {list(limits)}. Received: none "
            "of them"
        )
    of_runs = {"max_ms", "max_arena_bytes"} & given.keys()
    if form == "packed" and of_runs:
        raise ValueError(
            "A packed file is unpacked before it runs, so it has no time and "
            f"no arena of its own. Received: precision='packed', {given}"
        )
    if "max_arena_bytes" in given and not micro_is_installed():
        raise ImportError(
            "`max_arena_bytes` requires LiteRT for Microcontrollers. Install "
            "it with: pip install 'keras-distill[micro]'"
        )
    return given


class Budget(NamedTuple):
    """What a network may take.

    Attributes:
        limits: `{name: maximum}`, the arguments of `shrink`.
        form: the form of the file, as in `write_form`.
        samples: arrays of inputs.
        known: the costs of models, by their JSON. They hardly depend on the
            weights, and several searches come to the same network.
    """

    limits: dict[str, float]
    form: str
    samples: list[np.ndarray]
    known: dict[str, dict[str, float]]

    @property
    def is_int8(self) -> bool:
        """Whether the network is trained quantization-aware."""
        return self.form == "litert_int8"

    def costs(self, model: keras.Model) -> dict[str, float]:
        """Return `{name: number}`, what a model takes of each limit."""
        key = model.to_json()
        if key not in self.known:
            self.known[key] = self._measured(model)
        return self.known[key]

    def _measured(self, model):
        found: dict[str, float] = {
            name: cost(model, key)
            for name, key in _OF_GRAPHS.items()
            if name in self.limits
        }
        if self.limits.keys() - _OF_GRAPHS.keys():
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "file")
                self._write(model, path)
                found |= self._costs_of_file(path)
        return found

    def excess(self, model: keras.Model) -> float:
        """Return the costs of a model divided by the limits, the largest."""
        return max(
            (
                value / self.limits[name]
                for name, value in self.costs(model).items()
            ),
            default=0.0,
        )

    def holds(self, path: pathlib.Path) -> bool:
        """Return whether the file of a trained network is small enough."""
        limit = self.limits.get("max_bytes")
        return limit is None or path.stat().st_size <= limit

    def without(self, name: str) -> "Budget":
        """Return a budget without one of the limits."""
        limits = {n: limit for n, limit in self.limits.items() if n != name}
        return self._replace(limits=limits, known={})

    def on_the_way(self, costs: dict[str, float], share: float) -> "Budget":
        """Return a budget between these costs and this budget.

            limit = costs ** (1 - share) * limit ** share

        Args:
            costs: those of the model at the beginning.
            share: float in (0, 1], how far the way has been gone.
        """
        return self._replace(
            limits={
                name: max(costs[name], limit) ** (1 - share) * limit**share
                for name, limit in self.limits.items()
            }
        )

    def _write(self, model, path):
        model = as_if_trained(model, self.is_int8)
        write_form(model, path, self.form, self.samples)

    def _costs_of_file(self, path):
        measures: dict[str, Callable[[], float]] = {
            "max_bytes": lambda: with_spare(path.stat().st_size),
            "max_ms": lambda: _milliseconds(path),
            "max_arena_bytes": lambda: arena_bytes(path.read_bytes()),
        }
        return {
            name: measure()
            for name, measure in measures.items()
            if name in self.limits
        }


def with_spare(size: int) -> int:
    """Return the bytes that a trained network of this size may take."""
    return math.ceil(size * (1 + _SPARE))


def _milliseconds(path):
    files = {"model": {"litert": path}}
    return measure_latency(files, _ROUNDS)["model"]["litert_ms"]


def described(costs: dict[str, float]) -> str:
    """Return costs as text, such as `9,000 MACs and 5 parameters`."""
    return " and ".join(
        f"{value:,.3g} {_TITLES[name]}"
        if name == "max_ms"
        else f"{value:,} {_TITLES[name]}"
        for name, value in costs.items()
    )
