"""LiveTeacher: runs the teacher on the view, as the training goes.

A teacher is borrowed. It runs in inference mode, its variables are read and
never written, its `trainable` flags stay as they are, and it is kept in a plain
object that Keras does not track: so it gets no gradient, no optimizer slot and
no place in a checkpoint.
"""

import keras

from keras_distill import _features
from keras_distill.teachers.precision import InPrecision


class LiveTeacher:
    """Any teacher, as one function from a view to outputs.

    Args:
        teacher: a built Keras model or layer, any callable
            `inputs -> outputs`, or a list of them.
        preprocessing: layer or callable applied to the view first, or `None`.
        dtype: precision to run in, or `None` for the teacher's own.

    Raises:
        TypeError: if the teacher can't be called.
        ValueError: if the list is empty, a model has no weights yet, or it
            can't run in that precision.
    """

    def __init__(self, teacher, preprocessing=None, dtype=None):
        self.given = teacher
        self.preprocessing = preprocessing
        self.members = (
            list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        )
        if not self.members:
            raise ValueError("`teacher` is an empty list. Received: teacher=[]")
        for member in self.members:
            _check_member(member)
        self._runners = self.members
        if dtype is not None and not isinstance(teacher, AbsentTeacher):
            self._runners = [InPrecision(m, dtype) for m in self.members]

    @property
    def variables(self):
        """The variables that the teacher reads, each once."""
        return self._all("variables")

    @property
    def weights(self):
        """Of its variables those that answers depend on: no seeds, metrics."""
        return self._all("weights")

    def _all(self, kind):
        layers = [
            part
            for part in (*self.members, self.preprocessing)
            if isinstance(part, keras.layers.Layer)
        ]
        found = {id(v): v for layer in layers for v in getattr(layer, kind)}
        return list(found.values())

    def find_layer(self, path):
        """Return the layer that a hint names.

        Raises:
            ValueError: if the teacher is not one model, or has no such layer.
        """
        if len(self.members) > 1 or not isinstance(
            self.members[0], keras.Model
        ):
            raise ValueError(
                "Hints are read from the layers of one teacher model. "
                f"Received: teacher={self.given!r}. Give a single keras.Model, "
                "or leave out `hints`."
            )
        model = getattr(self._runners[0], "twin", self.members[0])
        return _features.find_layer(model, path, "teacher_layer")

    def __call__(self, view):
        """Return the list of the teachers' outputs for a view."""
        if self.preprocessing is not None:
            view = self.preprocessing(view)
        return self.outputs(view)

    def outputs(self, view):
        """Return the same for a view that has been preprocessed."""
        return [_infer(runner, view) for runner in self._runners]


class AbsentTeacher:
    """Stands for a teacher that can't be asked, and says why."""

    def __init__(self, reason):
        self.reason = reason

    def __call__(self, inputs):
        raise ValueError(self.reason)


def _infer(member, view):
    if isinstance(member, keras.layers.Layer):
        return member(view, training=False)
    return member(view)


def _check_member(member):
    if not callable(member):
        raise TypeError(
            "`teacher` must be a Keras model, a callable `inputs -> outputs`, "
            f"or a list of these. Received: {member!r} of type "
            f"{type(member).__name__}"
        )
    if isinstance(member, keras.layers.Layer) and not member.built:
        raise ValueError(
            f"The teacher {member.name!r} is not built: it has no weights, so "
            "it has learned nothing yet. Train it or load its weights first."
        )
