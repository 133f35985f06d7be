"""Coupled channels: which channels can only be removed together.

Each channel that a layer makes gets its own number. Each tensor has the numbers
of its channels, along one of its axes. A layer passes numbers on, joins them
(the two terms of a sum must have the same channels), concatenates them, or
reads them with the rows of its kernel. Joined numbers are kept or removed
together.

The number 0 stands for everything that must be kept: the channels of the
model's inputs and outputs, and those that a layer without a rule reads or
returns. So an unknown layer makes the pruned model larger, but never wrong.

The rules of the layers are in `_layer_rules.py`.
"""

import operator
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import keras
import numpy as np

from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes


class Channels(NamedTuple):
    """The channels of a tensor. None is used if none can be removed.

    Attributes:
        axis: int above 0, the axis of the channels.
        numbers: array of shape `(shape[axis],)`. A channel that occurs several
            times on the axis, as after Flatten, occurs as often in the numbers.
    """

    axis: int
    numbers: np.ndarray


class Made(NamedTuple):
    """The channels that a layer makes.

    Attributes:
        weights: the attributes of the layer with the kernels that make them.
        axis: the axis of the kernels that they lie on.
        numbers: the numbers of the channels.
        setting: the key of their count in the config, such as `"filters"`.
        copies: how often the channels repeat on the axis: once for each gate of
            a recurrent layer.
    """

    weights: tuple[str, ...]
    axis: int
    numbers: np.ndarray
    setting: str
    copies: int = 1

    def sums(
        self,
        layer: keras.layers.Layer,
        values_of: Callable[[keras.Variable], np.ndarray],
    ) -> np.ndarray:
        """Return the sum over the entries of the kernels for each channel.

        Args:
            layer: the layer.
            values_of: a function that takes a kernel and returns an array of
                its shape.
        """
        total = np.zeros(len(self.numbers))
        for weight in self.weights:
            values = values_of(operator.attrgetter(weight)(layer))
            rows = np.moveaxis(values, self.axis, 0)
            rows = rows.reshape(self.copies, len(total), -1)
            total = total + rows.sum(axis=(0, 2))
        return total


# A function `(coupling, node, read)`; see `_layer_rules.py`.
Rule: TypeAlias = Callable[
    ["Coupling", Any, list[Channels | None]], Channels | None
]


class Coupling:
    """Which channels of a model are joined, and which weights have them.

    Args:
        rule_for: a function of a node that returns the rule of its layer, or
            None.
        excluded: layers whose outputs keep all channels.

    Attributes:
        made: `{layer: Made}`, for layers that make channels.
        cuts: `{layer: {(weight, axis): numbers}}`, the axes of weights that
            are cut with the channels; `weight` is a path of attributes.
        shapes: `{layer: (target_shape, Channels)}`, for Reshape.
        inputs: `{id: Channels}`, for the input tensors of nested models.
    """

    def __init__(
        self,
        rule_for: Callable[[Any], Rule | None],
        excluded: Iterable[keras.layers.Layer],
    ) -> None:
        self.rule_for = rule_for
        self.excluded = excluded
        self.made: dict[keras.layers.Layer, Made] = {}
        self.cuts: dict[
            keras.layers.Layer, dict[tuple[str, int], np.ndarray]
        ] = {}
        self.shapes: dict[keras.layers.Layer, tuple[Any, Channels]] = {}
        self.inputs: dict[int, Channels | None] = {}
        self._parents = [0]  # a union-find structure over the numbers
        self._first: dict[Any, Channels | None] = {}

    # The numbers.

    def make(
        self,
        layer: keras.layers.Layer,
        weights: tuple[str, ...],
        axis: int,
        count: int,
        setting: str,
        copies: int = 1,
    ) -> np.ndarray:
        """Return the numbers of the channels that a layer makes.

        The arguments are described in `Made`.
        """
        if layer not in self.made:
            start = len(self._parents)
            numbers = np.arange(start, start + count)
            self._parents.extend(numbers.tolist())
            self.made[layer] = Made(weights, axis, numbers, setting, copies)
            if layer in self.excluded:
                self.join(numbers, np.zeros_like(numbers))
        numbers = self.made[layer].numbers
        for weight in weights:
            self.cut(layer, weight, axis, np.tile(numbers, copies))
        return numbers

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Join two arrays of numbers, pair by pair."""
        if first is not second:
            for a, b in zip(first.tolist(), second.tolist()):
                a, b = self._root(a), self._root(b)
                # The smaller number is the root, so that 0 is always a root.
                self._parents[max(a, b)] = min(a, b)

    def pin(self, *several: Channels | None) -> None:
        """Keep all of these channels, by joining them with 0.

        Rules return the result, None, for an output whose channels are kept.
        """
        for channels in several:
            if channels is not None:
                self.join(channels.numbers, np.zeros_like(channels.numbers))

    def along(
        self, axis: int, tensor: keras.KerasTensor, channels: Channels | None
    ) -> np.ndarray:
        """Return the numbers along an axis, zeros if it has no channels."""
        if channels is not None and channels.axis == axis:
            return channels.numbers
        self.pin(channels)
        return np.zeros(tensor.shape[axis], "int64")

    def cut(
        self,
        layer: keras.layers.Layer,
        weight: str,
        axis: int,
        numbers: np.ndarray,
    ) -> None:
        """Record that an axis of a weight is cut with these channels.

        If a layer is called several times, this joins the channels that it
        reads in each call: there is one weight for all of them.
        """
        cuts = self.cuts.setdefault(layer, {})
        self.join(cuts.setdefault((weight, axis), numbers), numbers)

    def same_in_all_calls(
        self, key: Any, channels: Channels | None
    ) -> Channels | None:
        """Join the channels that are recorded under the same key.

        Returns:
            The channels, or None if they do not fit each other and are kept.
        """
        first = self._first.setdefault(key, channels)
        if first is not None and channels is not None:
            lengths = len(first.numbers), len(channels.numbers)
            if first.axis == channels.axis and lengths[0] == lengths[1]:
                self.join(first.numbers, channels.numbers)
                return channels
        self.pin(first, channels)
        return None

    def roots(self) -> np.ndarray:
        """Return an array that maps each number to its root.

        The root is the smallest of all joined numbers. So the root of channels
        that must be kept is 0.
        """
        return np.array([self._root(number) for number in self._parents])

    def _root(self, number):
        parents = self._parents
        while parents[number] != number:
            # Path halving, for the next search.
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    # The graph.

    def follow(
        self, graph: keras.Model, inputs: list[Channels | None]
    ) -> list[Channels | None]:
        """Return the channels of a graph's outputs, given those of its inputs.

        Args:
            graph: a functional or Sequential model.
            inputs: list of Channels or None, one for each of `graph.inputs`.
        """
        known = {id(t): c for t, c in zip(graph.inputs, inputs)}
        for node in nodes(graph):
            if not node.is_input:
                read = [known[id(tensor)] for tensor in node.input_tensors]
                returned = self._call(node, read)
                known |= {id(t): c for t, c in zip(node.outputs, returned)}
        return [known[id(tensor)] for tensor in graph.outputs]

    def _call(self, node, read):
        if has_graph(node.operation):
            returned = self._call_graph(node, read)
        elif rule := self.rule_for(node):
            # Layers with a rule have one output tensor.
            returned = [rule(self, node, read)]
        else:
            self.pin(*read)
            returned = [None] * len(node.outputs)
        if node.operation in self.excluded:
            self.pin(*returned)
        return returned

    def _call_graph(self, node, read):
        graph = node.operation
        if not _inputs_match(graph, node):
            self.pin(*read)
            read = [None] * len(graph.inputs)
        inputs = [
            self.same_in_all_calls(id(tensor), channels)
            for tensor, channels in zip(graph.inputs, read)
        ]
        self.inputs |= {id(t): c for t, c in zip(graph.inputs, inputs)}
        return self.follow(graph, inputs)


def _inputs_match(graph, node):
    """Return whether a nested model gets its inputs in their order and rank.

    Keras picks the inputs from a dict by name, and adds missing axes of length
    1.
    """
    ranks = [len(tensor.shape) for tensor in graph.inputs]
    given = [len(tensor.shape) for tensor in node.input_tensors]
    if ranks != given or len(ranks) == 1:
        return ranks == given
    try:
        keras.tree.assert_same_structure(node.arguments.args[0], graph.input)
    except (ValueError, TypeError, IndexError):
        return False
    return True


def couple(
    model: keras.Model,
    rule_for: Callable[[Any], Rule | None],
    excluded: Iterable[keras.layers.Layer] = (),
) -> Coupling:
    """Return the Coupling of a model.

    Args:
        model: a functional or Sequential model.
        rule_for: as in `Coupling`; see `_layer_rules.py`.
        excluded: layers whose outputs keep all channels.
    """
    coupling = Coupling(rule_for, excluded)
    coupling.pin(*coupling.follow(model, [None] * len(model.inputs)))
    return coupling
