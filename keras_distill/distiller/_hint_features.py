"""HintFeatures: the features that hints compare, captured in both models.

Each model runs once. While it runs, the outputs of the layers named in the
hints are captured. The student's features travel with its outputs from `call`
to the loss, the teacher's with the targets.
"""

import contextlib

from keras import tree

from keras_distill._graphs import _features
from keras_distill._graphs import _outputs
from keras_distill._graphs._layers import find_layer
from keras_distill._keras_internals import get_keras_mask
from keras_distill._keras_internals import with_keras_mask
from keras_distill.distiller._step_data import StepOutputs
from keras_distill.losses._hint import Hint
from keras_distill.losses._hint import channels_last
from keras_distill.teachers._live_teacher import AbsentTeacher


class HintFeatures:
    """Finds the layers of hints, captures their outputs, makes projectors.

    A plain object: Keras does not track the layers that it holds. The
    projectors are trained, so the Distiller holds the list of them as well.

    Args:
        student: the student.
        hints: list of `Hint`, or one.

    Raises:
        TypeError: if `hints` holds anything else.
        ValueError: if the student has no such layer.
    """

    def __init__(self, student, hints):
        hints = [hints] if isinstance(hints, Hint) else list(hints)
        for hint in hints:
            if not isinstance(hint, Hint):
                raise TypeError(
                    "`hints` must be a list of keras_distill.Hint. "
                    f"Received: {hint!r}"
                )
        self.hints = hints
        self.projectors = [None] * len(hints)
        self.has_projectors = not hints  # or each hint knows its projector
        self._student_layers = [
            find_layer(student, hint.student_layer, "student_layer")
            for hint in hints
        ]
        self._teacher_layers = []

    def find_in(self, live_teacher, student, can_change):
        """Find the layers in a teacher; make projectors if shapes are known.

        Args:
            live_teacher: the `LiveTeacher`.
            student: the student.
            can_change: bool. Whether projectors may still be replaced.

        Raises:
            ValueError: if the teacher has no such layer, or its features do not
                fit those of the student.
        """
        self._teacher_layers = []
        if not self.hints or isinstance(live_teacher.given, AbsentTeacher):
            return
        self._teacher_layers = [
            live_teacher.find_layer(hint.teacher_layer) for hint in self.hints
        ]
        inputs = [
            _outputs.known_inputs(model)
            for model in (live_teacher.members[0], student)
        ]
        if None not in inputs:
            self._make_projectors(
                live_teacher.outputs, student, *inputs, can_change
            )

    def build(self, live_teacher, run_student, views, can_change):
        """Make the projectors of models without a known graph, on a batch.

        Args:
            live_teacher: the `LiveTeacher`.
            run_student: function that runs, and so builds, the student.
            views: the batch as the teacher and as the student sees it.
            can_change: as for `find_in`.
        """
        if not self.has_projectors:
            specs = [_features.specs_of(view) for view in views]
            # Before capturing: Keras runs a model twice to build it.
            _features.output_spec(run_student, specs[1])
            self._make_projectors(live_teacher, run_student, *specs, can_change)

    def run_student(self, run, view, training):
        """Return the `StepOutputs` of `run(view, training)`."""
        with _capturing(self._student_layers) as features:
            outputs = run(view, training)
        masks = [get_keras_mask(output) for output in tree.flatten(outputs)]
        if not self.hints and all(mask is None for mask in masks):
            return outputs
        return StepOutputs(outputs, features(), masks)

    def run_teacher(self, live_teacher, view):
        """Return `(outputs, features)` of the teacher for a view."""
        with _capturing(self._teacher_layers) as features:
            outputs = live_teacher(view)
        return outputs, features()

    def project(self, features):
        """Return the student's features as the hints compare them."""
        return [
            feature if projector is None else projector(feature)
            for feature, projector in zip(features, self.projectors)
        ]

    def _make_projectors(
        self, teacher, student, teacher_inputs, student_inputs, can_change
    ):
        """Make projectors from symbolic runs of both models."""
        shapes = []
        for model, layers, inputs in (
            (teacher, self._teacher_layers, teacher_inputs),
            (student, self._student_layers, student_inputs),
        ):

            def run(inputs, model=model, layers=layers):
                with _capturing(layers) as features:
                    model(inputs)
                return features()

            features = _features.output_spec(run, inputs)
            shapes.append([tuple(feature.shape) for feature in features])
        projectors = [
            hint.make_projector(*pair, projector)
            for hint, *pair, projector in zip(
                self.hints, *shapes, self.projectors
            )
        ]
        if projectors != self.projectors and not can_change:
            raise ValueError(
                "The features of this teacher require other projectors than "
                "those of the previous teacher, and the optimizer is built for "
                f"those. Received: hints={self.hints}. Make a new Distiller."
            )
        self.projectors, self.has_projectors = projectors, True


@contextlib.contextmanager
def _capturing(layers):
    """Capture features with the channels last, and their masks."""
    if not layers:
        yield list
        return
    with _features.capturing(layers) as captured:
        yield lambda: [
            with_keras_mask(
                channels_last(feature, layer), get_keras_mask(feature)
            )
            for feature, layer in zip(captured(), layers)
        ]
