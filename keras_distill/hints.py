"""TakesHints: what a Distiller does about its hints.

Both models run once. While they do, the outputs of the hinted layers are
collected; the student's travel with its outputs from `call` to the loss, the
teacher's with the targets.
"""

import contextlib
import contextvars
import typing

import keras
from keras import tree

from keras_distill import _backend
from keras_distill import _features
from keras_distill import _outputs
from keras_distill.losses.hint import Hint
from keras_distill.losses.hint import channels_last
from keras_distill.losses.objective import FunctionLoss
from keras_distill.teachers.live import AbsentTeacher

# The Distiller whose step is running: its `call` returns features as well.
_stepping = contextvars.ContextVar("stepping", default=None)


class Hinted(typing.NamedTuple):
    """The student's outputs, with its features beside them."""

    outputs: typing.Any
    features: list


def split(y_pred):
    """Return `(outputs, features)` of what a student's step returned."""
    return y_pred if isinstance(y_pred, Hinted) else (y_pred, [])


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
        self._hint_losses = [FunctionLoss(hint.values) for hint in hints]
        self._hint_log = [keras.metrics.Mean(name="hint_loss")] if hints else []
        self._student_layers = _Layers(
            _features.find_layer(
                self.student, hint.student_layer, "student_layer"
            )
            for hint in hints
        )
        self._hints_ready = not hints

    def _find_hints_in(self, live_teacher):
        """Find the teacher's layers; build projectors where shapes are known.

        Raises:
            ValueError: if the teacher has no such layers.
        """
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
            self._build_projectors(live_teacher.answers, self.student, *inputs)

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
        specs = [
            tree.map_structure(
                lambda v: keras.KerasTensor(
                    v.shape, keras.backend.standardize_dtype(v.dtype)
                ),
                inputs,
            )
            for inputs in (teacher_view, view)
        ]
        _features.output_spec(self.call, specs[1])  # builds the student
        self._build_projectors(self._live_teacher.infer, self.call, *specs)

    @contextlib.contextmanager
    def _student_gives_features(self):
        token = _stepping.set(self)
        try:
            yield
        finally:
            _stepping.reset(token)

    def _run_student(self, inputs, training):
        if not self.hints or _stepping.get() is not self:
            return self.student(inputs, training=training)
        with self._student_layers.collecting() as features:
            outputs = self.student(inputs, training=training)
        return Hinted(outputs, features())

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        outputs, _ = split(y_pred)
        return super().compute_metrics(x, y, outputs, sample_weight)

    def _run_teacher(self, view, from_logits):
        if not self.hints:
            return self._live_teacher(view, from_logits), []
        with self._teacher_layers.collecting() as features:
            outputs = self._live_teacher(view, from_logits)
        return outputs, features()

    def _hint_loss(self, teacher_features, features, sample_weight):
        """Return the weighted sum of all hint losses, and log it."""
        weights = tree.flatten(sample_weight)
        # Weights of several outputs do not say which of them a feature is.
        weights = weights[0] if len(weights) == 1 else None
        total = 0.0
        for index, hint in enumerate(self.hints):
            feature = features[index]
            if self.projectors[index] is not None:
                feature = self.projectors[index](feature)
            total = total + hint.weight * self._hint_losses[index](
                teacher_features[index], feature, weights
            )
        if self.hints:
            (log,) = self._hint_log
            count = keras.ops.shape(features[0])[0]
            log.update_state(
                total * _backend.num_replicas(), sample_weight=count
            )
        return total


class _Layers:
    """Layers to collect from, hidden from Keras, which would track them."""

    def __init__(self, layers):
        self.layers = list(layers)

    @contextlib.contextmanager
    def collecting(self):
        with _features.collecting(self.layers) as collected:
            yield lambda: [
                channels_last(feature, layer)
                for feature, layer in zip(collected(), self.layers)
            ]
