"""BuildsSteps: how a Distiller is built on a batch, and its compiled steps.

Keras builds models, metrics and optimizers on a batch of data. What they get to
see is the view, which may have another size.
"""

import keras
from keras import tree

from keras_distill import _backend
from keras_distill._graphs import _features
from keras_distill.distiller._targets import Targets
from keras_distill.distiller._targets import View
from keras_distill.recording._batches import unpack
from keras_distill.views._consistent_augment import view_of_each


class BuildsSteps:
    """The state that Keras builds, and the steps that it compiles."""

    def make_train_function(self, force=False):
        self._make("train_function", super().make_train_function, force)

    def make_test_function(self, force=False):
        self._make("test_function", super().make_test_function, force)

    def _make(self, name, make, force):
        """Make a compiled step that is fed the teacher and is watched."""
        existing = getattr(self, name)
        make(force)
        if getattr(self, name) is existing:
            return
        function = _backend.feed(
            self,
            getattr(self, name),
            self._variables_read(name == "train_function"),
            self._live_teacher,
        )

        def watched(*arguments):
            self._settle_logs()
            result = function(*arguments)
            self._steps_taken += 1
            self._collect_logs(_backend.logs_of(result))
            return result

        setattr(self, name, watched)

    def _symbolic_build(self, iterator=None, data_batch=None):
        if data_batch is None:
            data_batch = _backend.first_batch(iterator)
        x, labels, _, _ = unpack(data_batch)
        teacher_view = x
        if self.augment is not None:
            if labels is not None and self._compile_metrics is not None:
                labels = self._followed_spec(x, labels)
            x, teacher_view = view_of_each(self.augment.view_spec(x))
        self._build_hints(x, teacher_view)
        super()._symbolic_build(data_batch=(x, Targets(labels)))

    def _followed_spec(self, images, labels):
        """Return symbolic labels of the shapes that they have in a view."""

        def follow(data):
            images, labels = data
            _, drawn = self.augment.draw(images)
            view = View(self.augment, drawn, images)
            return tree.map_structure(view.follow, labels)

        specs = _features.specs_of((images, labels))
        return tree.map_structure(
            lambda followed, label: keras.KerasTensor(
                followed.shape, label.dtype
            ),
            _features.output_spec(follow, specs),
            specs[1],
        )

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """TensorFlow alone: build early, so that callbacks find weights."""
        if self.built:
            super()._maybe_symbolic_build(iterator, data_batch)
        else:
            self._symbolic_build(iterator, data_batch)
