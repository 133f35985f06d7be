"""LiveTeacher: runs the teacher on the view, as the training goes.

A teacher is borrowed. It runs in inference mode, its variables are read and
never written, its `trainable` flags stay as they are, and it is kept in a plain
object that Keras does not track: so it gets no gradient, no optimizer slot and
no place in a checkpoint.
"""

import keras

from keras_distill import _backend
from keras_distill._graphs._layers import find_layer
from keras_distill.teachers import _closures
from keras_distill.teachers import _teacher_outputs
from keras_distill.teachers import _torch_modules
from keras_distill.teachers._precision import InPrecision


class LiveTeacher:
    """Any teacher, as one function from a view to outputs.

    Args:
        teacher: a built Keras model or layer, a torch module, any callable
            `inputs -> outputs`, or a list of them.
        preprocessing: layer or callable applied to the view first, or `None`.
        dtype: precision to run in, or `None` for the teacher's own.
        in_step: bool. Whether the teacher runs inside a training step, where
            torch modules can't run on other backends.

    Raises:
        TypeError: if the teacher can't be called, or can't run there.
        ValueError: if the list is empty, a model has no weights yet, or it
            can't run in that precision.
    """

    def __init__(self, teacher, preprocessing=None, dtype=None, in_step=True):
        self.given = teacher
        self.preprocessing = preprocessing
        self.members = (
            list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        )
        if not self.members:
            raise ValueError("`teacher` is an empty list. Received: teacher=[]")
        for member in self.members:
            _check_member(member)
        if in_step:
            for part in (*self.members, preprocessing):
                _check_runs_in_step(part)
        self.runners = self.members
        if dtype is not None and not isinstance(teacher, AbsentTeacher):
            self.runners = [InPrecision(m, dtype) for m in self.members]
        self.drawn_from = {}  # On JAX: the `seed_states` in use, by id.
        # Found once: a step of PyTorch asks every time.
        self._layers = [
            layer
            for part in (*self.members, preprocessing)
            for layer in _closures.parts_of(part, _is_layer)
        ]
        self._modules = [_torch_modules.modules_of(r) for r in self.runners]

    @property
    def variables(self):
        """The variables that the teacher reads, each once."""
        return self._all("variables")

    @property
    def weights(self):
        """Of its variables those that outputs depend on: no seeds, metrics."""
        return self._all("weights")

    def _all(self, kind):
        found = {
            id(v): v for layer in self._layers for v in getattr(layer, kind)
        }
        return list(found.values())

    @property
    def seed_states(self):
        """The states of the random generators that its layers draw from."""
        weights = {id(weight) for weight in self.weights}
        return [
            v
            for v in self.variables
            if id(v) not in weights and "int" in str(v.dtype)
        ]

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
        model = getattr(self.runners[0], "twin", self.members[0])
        return find_layer(model, path, "teacher_layer")

    def __call__(self, view):
        """Return the list of the teachers' outputs for a view."""
        with _backend.unwritten(self):
            if self.preprocessing is not None:
                view = _in_step(self.preprocessing, view)
            return self.outputs(view)

    def outputs(self, view):
        """Return the same for a view that has been preprocessed."""
        return [
            _teacher_outputs.tensors_of(_in_step(runner, view, modules), view)
            for runner, modules in zip(self.runners, self._modules)
        ]


class AbsentTeacher:
    """Stands for a teacher that can't be asked, and says why."""

    def __init__(self, reason):
        self.reason = reason

    def __call__(self, inputs):
        raise ValueError(self.reason)


def _is_layer(part):
    return isinstance(part, keras.layers.Layer)


def run(part, inputs, modules=None):
    """Run a teacher or its preprocessing in inference mode.

    Args:
        part: a layer of Keras, a torch module or another callable.
        inputs: what it takes.
        modules: the torch modules in it, where they are known already.
    """
    if modules is None:
        modules = _torch_modules.modules_of(part)
    with _torch_modules.evaluating(modules):
        if isinstance(part, keras.layers.Layer):
            return part(inputs, training=False)
        return part(inputs)


def is_compilable(part):
    """Tell whether a teacher or preprocessing is made of layers of Keras."""
    return isinstance(part, (keras.layers.Layer, InPrecision))


def _in_step(part, view, modules=None):
    """Run a part inside a training step, where a view may have no values."""
    if _torch_modules.is_module(part):
        view = _torch_modules.as_tensors(view, part)
    if is_compilable(part) or isinstance(part, AbsentTeacher):
        return run(part, view, modules)
    try:
        return run(part, view, modules)
    except Exception as error:
        if _backend.has_values(view):
            raise
        raise TypeError(
            f"The function {part!r} failed inside the compiled training step, "
            "where its input is a symbol without values. A function that needs "
            "values (NumPy, another framework, a file, a server) can't run "
            "there: record what the teacher returns with `record_teacher` and "
            "train from the recording, or use "
            "`compile(..., run_eagerly=True)`. A function of `keras.ops` can; "
            f"then the error itself says more. Received: "
            f"{type(error).__name__}: {error}"
        ) from error


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
    if _torch_modules.is_module(member):
        if _torch_modules.is_without_weights(member):
            raise ValueError(
                f"The teacher {type(member).__name__} has layers with no "
                "weights yet, so it has learned nothing. Load its weights "
                "first."
            )


def _check_runs_in_step(part):
    if _torch_modules.is_module(part) and keras.backend.backend() != "torch":
        raise TypeError(
            f"{type(part).__name__} is a torch.nn.Module, and a training step "
            f"of the {keras.backend.backend()!r} backend can't run it. Record "
            "it with `record_teacher`, which takes it on any backend, and "
            "train with `teacher=RecordedTeacher(path)`; or train on the "
            "torch backend (`KERAS_BACKEND=torch`)."
        )
