"""RecordingStep: draws a view of a batch and runs the teacher on it.

Keras layers run compiled, as in `predict`. Other callables run outside of
compiled code, on values. So they may use any framework, read files or call a
server.
"""

import functools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_distill import _backend
from keras_distill._graphs import _features
from keras_distill.recording._top_k import most_probable
from keras_distill.teachers import _average
from keras_distill.teachers import _teacher_outputs
from keras_distill.teachers import _torch_modules
from keras_distill.teachers._live_teacher import LiveTeacher
from keras_distill.teachers._live_teacher import is_compilable
from keras_distill.teachers._live_teacher import run
from keras_distill.views import ConsistentAugment
from keras_distill.views._transformations import tensors_of
from keras_distill.views._view_of_each import view_of_each


class RecordingStep:
    """One step of a recording, from inputs to drawn values and outputs.

    Args:
        live_teacher: the `LiveTeacher`.
        augment: `ConsistentAugment` or `None`.
        predicts, from_logits: what the outputs are, to average several
            teachers.
        top_k: int, how many classes `run_top_k` keeps, or `None`.
    """

    def __init__(
        self,
        live_teacher: LiveTeacher,
        augment: ConsistentAugment | None,
        predicts: str,
        from_logits: bool,
        top_k: int | None,
    ) -> None:
        self.live_teacher, self.augment = live_teacher, augment
        self.predicts, self.from_logits = predicts, from_logits
        self.top_k = top_k
        members = live_teacher.members
        parts = [*live_teacher.runners, live_teacher.preprocessing]
        if all(part is None or is_compilable(part) for part in parts):
            self._compiled = _CompiledFunction(
                self._draw_and_run, members, augment
            )
            self._compiled_top_k = _CompiledFunction(
                self._draw_and_run_top_k, members, augment
            )
            self._runners = None
        else:
            self._compiled = _CompiledFunction(self._draw, [], augment)
            self._compiled_top_k = _CompiledFunction(self._most_probable, [])
            self._runners = [
                self._runner(*each)
                for each in zip(live_teacher.runners, members)
            ]

    def run(self, x: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """Return `(outputs, drawn)` of a batch, both as NumPy arrays.

        Outputs are float32, in the structure that the teacher returned.

        Raises:
            TypeError: if the teacher returned anything but arrays.
            ValueError: if there is not one output per sample.
        """
        size = len(tree.flatten(x)[0])
        if self._runners is not None and self.augment is None:
            result = {"view": x, "drawn": {}}
        else:
            result = self._compiled.predict_on_batch(x)
        if self._runners is not None:
            view = _with_values(result["view"])
            result["outputs"] = self._averaged(
                [_in_float32(runner(view)) for runner in self._runners]
            )
        outputs = tree.map_structure(
            lambda o: np.asarray(keras.ops.convert_to_numpy(o), "float32"),
            result["outputs"],
        )
        for output in tree.flatten(outputs):
            _teacher_outputs.check_rows(output, size)
        return outputs, result["drawn"]

    def run_top_k(self, x: Any) -> tuple[list[dict], dict[str, np.ndarray]]:
        """Return `(outputs, drawn)` of a batch, with `top_k` classes of each.

        Of Keras models, they are chosen on the device.

        Returns:
            A list with what `most_probable` returns of each output; and what
            `run` returns.
        """
        if self._runners is None:
            result = self._compiled_top_k.predict_on_batch(x)
            return result["outputs"], result["drawn"]
        outputs, drawn = self.run(x)
        flat = tree.flatten(outputs)
        return self._compiled_top_k.predict_on_batch(flat), drawn

    def drawn_per_row(self, x: Any) -> dict[str, bool]:
        """Return, by name, whether a drawn tensor has a value per image.

        Args:
            x: a batch of inputs.
        """
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
    def seed_states(self) -> list[np.ndarray]:
        """The states of the generators that draw the views."""
        states = [] if self.augment is None else self.augment.variables
        return [np.asarray(keras.ops.convert_to_numpy(s)) for s in states]

    @seed_states.setter
    def seed_states(self, values: Iterable) -> None:
        states = [] if self.augment is None else self.augment.variables
        for state, value in zip(states, values, strict=True):
            state.assign(np.asarray(value).astype(state.dtype))

    def _runner(self, runner, member):
        """Return a function from a view to the outputs of one teacher."""
        # A Keras layer as preprocessing takes the view. A function takes what
        # its teacher takes: torch tensors for a torch module.
        layer, function = None, self.live_teacher.preprocessing
        if is_compilable(function):
            layer, function = _compile(function), None
        teacher = _compile(runner, member) if is_compilable(runner) else runner
        is_module = _torch_modules.is_module(member)

        def run_teacher(view):
            if layer is not None:
                view = layer(view)
            if is_module:
                view = _torch_modules.as_tensors(view, member)
            if function is not None:
                view = run(function, view)
                if is_module:
                    view = _torch_modules.as_tensors(view, member)
            return run(teacher, view)

        return run_teacher

    def _draw(self, inputs):
        view, drawn = self.augment.draw(inputs)
        return {
            "view": view_of_each(view, inputs)[1],
            "drawn": tensors_of(drawn),
        }

    def _draw_and_run(self, inputs):
        view, drawn = inputs, []
        if self.augment is not None:
            view, drawn = self.augment.draw(inputs)
        outputs = [
            tree.map_structure(lambda o: keras.ops.cast(o, "float32"), each)
            for each in self.live_teacher(view_of_each(view, inputs)[1])
        ]
        return {"outputs": self._averaged(outputs), "drawn": tensors_of(drawn)}

    def _draw_and_run_top_k(self, inputs):
        result = self._draw_and_run(inputs)
        outputs = self._most_probable(tree.flatten(result["outputs"]))
        return {**result, "outputs": outputs}

    def _most_probable(self, outputs):
        return [
            most_probable(output, self.top_k, self.from_logits)
            for output in outputs
        ]

    def _averaged(self, outputs):
        """Average a list with the outputs of each teacher."""
        first, *others = outputs
        if not others:
            return first
        for other in others:
            _check_same_shapes(first, other)
        return tree.map_structure(
            lambda *each: _average.average(
                each, self.predicts, self.from_logits
            ),
            *outputs,
        )


class _CompiledFunction(keras.Model):
    """A function that runs compiled, as in `predict`.

    Args:
        function: from the tensors of a batch to tensors.
        parts: layers that it runs. Keras tracks them, so that their weights
            are arguments of the compiled function and not constants.
        augment: `ConsistentAugment` or `None`, also tracked.
    """

    def __init__(self, function, parts, augment=None):
        super().__init__(name="recording_step", autocast=False)
        self.parts, self.augment = list(parts), augment
        self._function = function
        self.built = True

    def call(self, inputs):
        return self._function(inputs)


def _compile(runner, layer=None):
    function = functools.partial(run, runner)
    return _CompiledFunction(function, [layer or runner]).predict_on_batch


def _with_values(view):
    """Return a view as functions take it.

    They take NumPy arrays, which every framework accepts; on the torch backend
    they take torch tensors. Other floats become float32, as in `fit()`.
    """

    def convert(leaf):
        leaf = keras.ops.convert_to_numpy(leaf)
        if leaf.dtype.kind in "OSU":
            return leaf  # text
        if str(leaf.dtype) in ("float64", "bfloat16"):
            leaf = leaf.astype("float32")
        if _backend.runs_torch_modules():
            return keras.ops.convert_to_tensor(leaf)
        return leaf

    return tree.map_structure(convert, view)


def _in_float32(outputs):
    return tree.map_structure(
        lambda leaf: np.asarray(
            keras.ops.convert_to_numpy(_torch_modules.to_numpy(leaf)), "float32"
        ),
        _teacher_outputs.arrays_of(outputs),
    )


def _check_same_shapes(first, other):
    tree.assert_same_structure(first, other)
    for one, two in zip(tree.flatten(first), tree.flatten(other)):
        if tuple(one.shape) != tuple(two.shape):
            raise ValueError(
                "Several teachers are averaged, so their outputs must have "
                f"one shape. Received: {tuple(one.shape)} and "
                f"{tuple(two.shape)}."
            )
