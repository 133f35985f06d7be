"""Labeller: draws a view of a batch, and asks the teacher about it.

Layers of Keras run compiled, as `predict` runs them. All other callables run
outside of what is compiled, on values: so they may be written in any framework,
read files or call a server.
"""

import functools

import keras
import numpy as np
from keras import tree

from keras_distill._graphs import _features
from keras_distill.teachers import _average
from keras_distill.teachers import _teacher_outputs
from keras_distill.teachers import _torch_modules
from keras_distill.teachers._live_teacher import is_compilable
from keras_distill.teachers._live_teacher import run
from keras_distill.views._consistent_augment import tensors_of
from keras_distill.views._consistent_augment import view_of_each


class Labeller:
    """From a batch of inputs to what was drawn and what the teacher returned.

    Args:
        live: the `LiveTeacher`.
        augment: `ConsistentAugment` or `None`.
        predicts, from_logits: what outputs are, to average several teachers.
    """

    def __init__(self, live, augment, predicts, from_logits):
        self.live, self.augment = live, augment
        self.predicts, self.from_logits = predicts, from_logits
        parts = [*live.runners, live.preprocessing]
        if all(part is None or is_compilable(part) for part in parts):
            self._draw = _Compiled(self._draw_and_run, live.members, augment)
            self._runners = None
        else:
            self._draw = _Compiled(self._draw_alone, [], augment)
            self._runners = [
                self._runner(*each) for each in zip(live.runners, live.members)
            ]

    def label(self, x):
        """Return `(outputs, drawn)` of a batch, both as NumPy arrays.

        Outputs are float32, in the structure that the teacher returned.

        Raises:
            TypeError: if the teacher returned something else than arrays.
            ValueError: if there is not an output per sample.
        """
        size = len(tree.flatten(x)[0])
        if self._runners is not None and self.augment is None:
            answer = {"view": x, "drawn": {}}
        else:
            answer = self._draw.predict_on_batch(x)
        if self._runners is not None:
            view = _with_values(answer["view"])
            answer["outputs"] = self._averaged(
                [_in_float32(runner(view)) for runner in self._runners]
            )
        found = tree.map_structure(
            lambda o: np.asarray(keras.ops.convert_to_numpy(o), "float32"),
            answer["outputs"],
        )
        for output in tree.flatten(found):
            _teacher_outputs.check_rows(output, size)
        return found, answer["drawn"]

    def per_row(self, x):
        """Tell of each drawn tensor, by name, if it has a value per image."""
        if self.augment is None:
            return {}

        def shapes(batch):
            spec = tree.map_structure(
                lambda leaf: keras.KerasTensor(
                    (batch, *leaf.shape[1:]), str(leaf.dtype)
                ),
                x,
            )
            drawn = _features.output_spec(
                lambda images: tensors_of(self.augment.draw(images)[1]), spec
            )
            return {name: tuple(tensor.shape) for name, tensor in drawn.items()}

        few, many = shapes(5), shapes(7)
        return {name: few[name] != many[name] for name in few}

    @property
    def seed_states(self):
        """The states of the generators that draw the views."""
        states = [] if self.augment is None else self.augment.variables
        return [np.asarray(keras.ops.convert_to_numpy(s)) for s in states]

    @seed_states.setter
    def seed_states(self, values):
        states = [] if self.augment is None else self.augment.variables
        for state, value in zip(states, values, strict=True):
            state.assign(np.asarray(value).astype(state.dtype))

    def _runner(self, runner, member):
        """Return a function from a view to what one teacher returns."""
        # A layer computes on the view; a function on what its teacher gets.
        layer, function = None, self.live.preprocessing
        if is_compilable(function):
            layer, function = _compiled(function), None
        ask = _compiled(runner, member) if is_compilable(runner) else runner
        is_module = _torch_modules.is_module(member)

        def label(view):
            if layer is not None:
                view = layer(view)
            if is_module:
                view = _torch_modules.as_tensors(view, member)
            if function is not None:
                view = run(function, view)
                if is_module:
                    view = _torch_modules.as_tensors(view, member)
            return run(ask, view)

        return label

    def _draw_alone(self, inputs):
        view, drawn = self.augment.draw(inputs)
        return {
            "view": view_of_each(view, inputs)[1],
            "drawn": tensors_of(drawn),
        }

    def _draw_and_run(self, inputs):
        view, drawn = inputs, []
        if self.augment is not None:
            view, drawn = self.augment.draw(inputs)
        answers = [
            tree.map_structure(lambda o: keras.ops.cast(o, "float32"), each)
            for each in self.live(view_of_each(view, inputs)[1])
        ]
        return {"outputs": self._averaged(answers), "drawn": tensors_of(drawn)}

    def _averaged(self, answers):
        first, *others = answers
        if not others:
            return first
        for other in others:
            _check_alike(first, other)
        return tree.map_structure(
            lambda *outputs: _average.average(
                outputs, self.predicts, self.from_logits
            ),
            *answers,
        )


class _Compiled(keras.Model):
    """A function as `predict` runs it.

    Args:
        function: from the tensors of a batch to tensors.
        parts: layers that it runs, tracked by Keras, so that their weights are
            inputs and no constants.
        augment: `ConsistentAugment` or `None`, tracked as well.
    """

    def __init__(self, function, parts, augment=None):
        super().__init__(name="labeller", autocast=False)
        self.parts, self.augment = list(parts), augment
        self._function = function
        self.built = True

    def call(self, inputs):
        return self._function(inputs)


def _compiled(runner, layer=None):
    model = _Compiled(functools.partial(run, runner), [layer or runner])
    return model.predict_on_batch


def _with_values(view):
    """Return a view as functions get it.

    That is NumPy arrays, which every framework takes; but torch tensors on the
    torch backend, where functions are written for these. float32 is what
    `fit()` makes of other floats.
    """

    def convert(leaf):
        leaf = keras.ops.convert_to_numpy(leaf)
        if leaf.dtype.kind in "OSU":
            return leaf  # Text.
        if str(leaf.dtype) in ("float64", "bfloat16"):
            leaf = leaf.astype("float32")
        if keras.backend.backend() == "torch":
            return keras.ops.convert_to_tensor(leaf)
        return leaf

    return tree.map_structure(convert, view)


def _in_float32(answer):
    return tree.map_structure(
        lambda leaf: np.asarray(
            keras.ops.convert_to_numpy(_torch_modules.to_numpy(leaf)), "float32"
        ),
        _teacher_outputs.arrays_of(answer),
    )


def _check_alike(first, other):
    tree.assert_same_structure(first, other)
    for one, two in zip(tree.flatten(first), tree.flatten(other)):
        if tuple(one.shape) != tuple(two.shape):
            raise ValueError(
                "Several teachers are averaged, so their outputs must have "
                f"one shape. Received: {tuple(one.shape)} and "
                f"{tuple(two.shape)}."
            )
