"""Which channels can only leave together.

Every channel that a layer makes gets a number of its own, and a tensor carries
the numbers of its channels along one of its axes. Layers pass numbers on, join
them (a sum needs both of its terms), string them together, or read them with
the rows of a kernel. Joined numbers stay or leave together. The number 0 is
joined with all that must stay: what goes in or out of the model, and what a
layer without a rule reads or returns. So a layer that is unknown here costs
some smallness and never the right result.

The rules themselves are in `_channel_rules.py`.
"""

from typing import NamedTuple

import keras
import numpy as np

from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes


class Channels(NamedTuple):
    """The channels of a tensor; None in its place if none can be removed.

    Attributes:
        axis: the axis that they lie on, above 0.
        numbers: array of shape `(shape[axis],)`. A channel that stands there
            several times, as after Flatten, does so in the numbers too.
    """

    axis: int
    numbers: np.ndarray


class Made(NamedTuple):
    """Where a layer makes channels, and how its config says how many."""

    weight: str
    axis: int
    numbers: np.ndarray
    setting: str


class Coupling:
    """What the channels of a model have to do with each other.

    Attributes:
        made: `{layer: Made}`, for layers that make channels.
        cuts: `{layer: {(weight, axis): numbers}}`, the axes of weights that
            channels lie on; `weight` is a path of attributes.
        shapes: `{layer: (target_shape, Channels)}`, for Reshape.
        inputs: `{id: Channels}`, for the input tensors of nested models.
    """

    def __init__(self, rule_for, spared):
        self.rule_for = rule_for
        self.spared = spared
        self.parents = [0]
        self.made = {}
        self.cuts = {}
        self.shapes = {}
        self.inputs = {}
        self.first = {}

    # The numbers.

    def make(self, layer, weight, axis, count, setting):
        """Return the numbers of the channels that a layer makes."""
        if layer not in self.made:
            start = len(self.parents)
            numbers = np.arange(start, start + count)
            self.parents.extend(numbers.tolist())
            self.made[layer] = Made(weight, axis, numbers, setting)
        numbers = self.made[layer].numbers
        self.cut(layer, weight, axis, numbers)
        return numbers

    def join(self, first, second):
        """Let the channels of two arrays of numbers leave only in pairs."""
        if first is not second:
            for a, b in zip(first.tolist(), second.tolist()):
                a, b = self._root(a), self._root(b)
                # The smaller one is the root, so that 0 is one.
                self.parents[max(a, b)] = min(a, b)

    def pin(self, *several):
        """Let channels stay. Returns None, what stands for such channels."""
        for channels in several:
            if channels is not None:
                self.join(channels.numbers, np.zeros_like(channels.numbers))

    def along(self, axis, tensor, channels):
        """Return the numbers along an axis; of others than channels, 0."""
        if channels is not None and channels.axis == axis:
            return channels.numbers
        self.pin(channels)
        return np.zeros(tensor.shape[axis], "int64")

    def cut(self, layer, weight, axis, numbers):
        """Note that channels lie on an axis of a weight.

        A layer that is called several times has this weight once: what it reads
        in one call leaves with what it reads in the others.
        """
        cuts = self.cuts.setdefault(layer, {})
        self.join(cuts.setdefault((weight, axis), numbers), numbers)

    def same(self, key, channels):
        """Join what is found at the same place in several calls."""
        first = self.first.setdefault(key, channels)
        if first is not None and channels is not None:
            lengths = len(first.numbers), len(channels.numbers)
            if first.axis == channels.axis and lengths[0] == lengths[1]:
                self.join(first.numbers, channels.numbers)
                return channels
        return self.pin(first, channels)

    def roots(self):
        """Return an array that maps each number to the one it is joined with.

        Of all that are joined, it is the smallest; so what must stay maps to 0.
        """
        return np.array([self._root(number) for number in self.parents])

    def _root(self, number):
        while self.parents[number] != number:
            # Halves the way for whoever comes next.
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    # The graph.

    def follow(self, graph, inputs):
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
            # What has a rule returns one tensor.
            returned = [rule(self, node, read)]
        else:
            self.pin(*read)
            returned = [None] * len(node.outputs)
        if node.operation in self.spared:
            self.pin(*returned)
        return returned

    def _call_graph(self, node, read):
        graph = node.operation
        if not _takes_as_they_are(graph, node):
            self.pin(*read)
            read = [None] * len(graph.inputs)
        inputs = [
            self.same(id(tensor), channels)
            for tensor, channels in zip(graph.inputs, read)
        ]
        self.inputs |= {id(t): c for t, c in zip(graph.inputs, inputs)}
        return self.follow(graph, inputs)


def _takes_as_they_are(graph, node):
    """Return whether a nested model takes the tensors in their order and rank.

    A model that is given a dict may pick from it by name, and missing axes of
    length 1 are added.
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


def couple(model, rule_for, spared=()):
    """Return the Coupling of a model.

    Args:
        model: a functional or Sequential model.
        rule_for: a function of a node; see `_channel_rules.py`.
        spared: layers whose outputs keep all channels.
    """
    coupling = Coupling(rule_for, spared)
    coupling.pin(*coupling.follow(model, [None] * len(model.inputs)))
    return coupling
