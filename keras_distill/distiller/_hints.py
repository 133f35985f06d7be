"""TakesHints: what a Distiller does about its hints.

Both models run once. While they do, the outputs of the hinted layers are
collected; the student's travel with its outputs from `call` to the loss, the
teacher's with the targets.
"""

import contextlib
import contextvars
import typing

from keras import tree

from keras_distill._graphs import _features
from keras_distill._graphs import _outputs
from keras_distill._graphs._layers import find_layer
from keras_distill._keras_internals import get_keras_mask
from keras_distill._keras_internals import with_keras_mask
from keras_distill.losses._hint import Hint
from keras_distill.losses._hint import channels_last
from keras_distill.teachers._live_teacher import AbsentTeacher

# The Distiller whose step is running: its `call` returns features as well.
_stepping = contextvars.ContextVar("stepping", default=None)


class StepOutputs(typing.NamedTuple):
    """What the student returns to a step: its outputs, and what is beside.

    On JAX, a tensor loses its Keras mask on the way from the gradient to the
    metrics, so masks travel on their own.
    """

    outputs: typing.Any
    features: list
    masks: list


def split(y_pred):
    """Return `(outputs, features)` of what a student's step returned."""
    if not isinstance(y_pred, StepOutputs):
        return y_pred, []
    for output, mask in zip(tree.flatten(y_pred.outputs), y_pred.masks):
        with_keras_mask(output, mask)
    return y_pred.outputs, y_pred.features


class TakesHints:
    """Hints of a Distiller: their layers, projectors and losses."""

    def _take_hints(self, hints):
        hints = [hints] if isinstance(hints, Hint) else list(hints)
        for hint in hints:
            if not isinstance(hint, Hint):
                raise TypeError(
                    "`hints` must be a list of keras_distill.Hint. "
                    f"Received: {hint!r}"
                )
        self.hints = hints
        self.projectors = [None] * len(hints)
        self._student_layers = _Layers(
            find_layer(self.student, hint.student_layer, "student_layer")
            for hint in hints
        )
        self._hints_ready = not hints

    def _find_hints_in(self, live_teacher):
        """Find the teacher's layers; build projectors where shapes are known.

        Raises:
            ValueError: if the teacher has no such layers.
        """
        self._teacher_layers = _Layers([])
        if not self.hints or isinstance(live_teacher.given, AbsentTeacher):
            return
        self._teacher_layers = _Layers(
            live_teacher.find_layer(hint.teacher_layer) for hint in self.hints
        )
        inputs = [
            _outputs.known_inputs(model)
            for model in (live_teacher.members[0], self.student)
        ]
        if None not in inputs:
            self._build_projectors(live_teacher.outputs, self.student, *inputs)

    def _build_projectors(self, teacher, student, teacher_input, student_input):
        specs = []
        for model, layers, inputs in (
            (teacher, self._teacher_layers, teacher_input),
            (student, self._student_layers, student_input),
        ):

            def run(inputs, model=model, layers=layers):
                with layers.collecting() as features:
                    model(inputs)
                return features()

            specs.append(_features.output_spec(run, inputs))
        projectors = list(self.projectors)
        for index, hint in enumerate(self.hints):
            shapes = [tuple(features[index].shape) for features in specs]
            projectors[index] = hint.make_projector(*shapes, projectors[index])
        if projectors != list(self.projectors):
            if self.built:
                raise ValueError(
                    "The features of this teacher need another projector than "
                    "those of the one before, and the optimizer already knows "
                    f"that one. Received: hints={self.hints}. Make a new "
                    "Distiller."
                )
            self.projectors = projectors  # Keras tracks what is assigned.
        self._hints_ready = True

    def _build_hints(self, view, teacher_view):
        """Build the projectors of models without a graph, on a batch."""
        if self._hints_ready:
            return
        specs = [_features.specs_of(each) for each in (teacher_view, view)]
        _features.output_spec(self.call, specs[1])  # builds the student
        self._build_projectors(self._live_teacher, self.call, *specs)

    @contextlib.contextmanager
    def _student_gives_features(self):
        token = _stepping.set(self)
        try:
            yield
        finally:
            _stepping.reset(token)

    def _run_student(self, inputs, training):
        if _stepping.get() is not self:
            return self.student(inputs, training=training)
        with self._student_layers.collecting() as features:
            outputs = self.student(inputs, training=training)
        masks = [get_keras_mask(output) for output in tree.flatten(outputs)]
        if not self.hints and all(mask is None for mask in masks):
            return outputs
        return StepOutputs(outputs, features(), masks)

    def _run_teacher(self, view):
        with self._teacher_layers.collecting() as features:
            outputs = self._live_teacher(view)
        return outputs, features()

    def _projected(self, features):
        """Return the student's features as the hints compare them."""
        return [
            feature if projector is None else projector(feature)
            for feature, projector in zip(features, self.projectors)
        ]


class _Layers:
    """Layers to collect from, hidden from Keras, which would track them."""

    def __init__(self, layers):
        self.layers = list(layers)

    @contextlib.contextmanager
    def collecting(self):
        if not self.layers:
            yield list
            return
        with _features.collecting(self.layers) as collected:
            yield lambda: [
                with_keras_mask(
                    channels_last(feature, layer), get_keras_mask(feature)
                )
                for feature, layer in zip(collected(), self.layers)
            ]
