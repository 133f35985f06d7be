"""LiveTeacher: runs the teacher on the view during training.

The teacher belongs to the caller. It runs in inference mode, its variables are
read and never written, and its `trainable` flags do not change. It is held in a
plain object, so Keras does not track it: it gets no gradients, no optimizer
slots and no place in a checkpoint.

Left out: a frozen copy of the teacher. It would take memory twice, and would
not follow a teacher that changes.
"""

from typing import Any
from typing import NoReturn

import keras

from keras_distill import _backend
from keras_distill._graphs._layers import find_layer
from keras_distill._typing import Tensors
from keras_distill.teachers import _closures
from keras_distill.teachers import _teacher_outputs
from keras_distill.teachers import _torch_modules
from keras_distill.teachers._precision import InPrecision


class LiveTeacher:
    """Runs any teacher, or a list of teachers, on a view.

    Args:
        teacher: a built Keras model or layer, a torch module, any callable
            `inputs -> outputs`, or a list of them.
        preprocessing: layer or callable applied to the view first, or `None`.
        dtype: precision to run in, or `None` for the teacher's own.
        in_step: bool. Whether the teacher runs inside a training step, where
            only the torch backend can run torch modules.

    Raises:
        TypeError: if the teacher is not callable, or cannot run inside a
            training step.
        ValueError: if the list is empty, if a model has no weights yet, or if
            it cannot run in that precision.
    """

    def __init__(
        self,
        teacher: Any,
        preprocessing: Any = None,
        dtype: str | None = None,
        in_step: bool = True,
    ) -> None:
        self.given = teacher
        self.preprocessing = preprocessing
        self.members = (
            list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        )
        if not self.members:
            raise ValueError(
                "`teacher` is an empty list. Received: teacher=[]. Pass at "
                "least one model or callable."
            )
        for member in self.members:
            _check_member(member)
        if in_step:
            for part in (*self.members, preprocessing):
                _check_runs_in_step(part)
        self.runners = self.members
        if dtype is not None and not isinstance(teacher, AbsentTeacher):
            self.runners = [InPrecision(m, dtype) for m in self.members]
        # On JAX: the `seed_states` that the teacher draws from, by id.
        self.drawn_from: dict = {}
        # Found once, because a step of PyTorch reads them every time.
        self._layers = [
            layer
            for part in (*self.members, preprocessing)
            for layer in _closures.parts_of(part, _is_layer)
        ]
        self._modules = [_torch_modules.modules_of(r) for r in self.runners]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that the teacher reads, each once."""
        return self._all("variables")

    @property
    def weights(self) -> list[keras.Variable]:
        """The variables without states of random generators and metrics."""
        return self._all("weights")

    def _all(self, kind):
        found = {
            id(v): v for layer in self._layers for v in getattr(layer, kind)
        }
        return list(found.values())

    @property
    def seed_states(self) -> list[keras.Variable]:
        """The states of the random generators that its layers draw from."""
        weights = {id(weight) for weight in self.weights}
        return [
            v
            for v in self.variables
            if id(v) not in weights and "int" in str(v.dtype)
        ]

    def find_layer(self, path: str) -> keras.layers.Layer:
        """Return the layer of the teacher that a hint names.

        Raises:
            ValueError: if the teacher is not one model, or has no such layer.
        """
        if len(self.members) > 1 or not isinstance(
            self.members[0], keras.Model
        ):
            raise ValueError(
                "Hints require one teacher model, whose layers they name. "
                f"Received: teacher={self.given!r}. Pass one keras.Model, or "
                "remove `hints`."
            )
        model = getattr(self.runners[0], "clone", self.members[0])
        return find_layer(model, path, "teacher_layer")

    def __call__(self, view: Tensors) -> list[Tensors]:
        """Return a list with the outputs of each teacher for a view."""
        with _backend.unwritten(self):
            if self.preprocessing is not None:
                view = _in_step(self.preprocessing, view)
            return self.outputs(view)

    def outputs(self, view: Tensors) -> list[Tensors]:
        """Return the outputs for a view that is preprocessed already."""
        return [
            _teacher_outputs.tensors_of(_in_step(runner, view, modules), view)
            for runner, modules in zip(self.runners, self._modules)
        ]


class AbsentTeacher:
    """Stands for a teacher that is not available, and raises when it is run.

    Args:
        reason: text of the error.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, inputs: Tensors) -> NoReturn:
        raise ValueError(self.reason)


def _is_layer(part):
    return isinstance(part, keras.layers.Layer)


def run(part, inputs, modules=None):
    """Run a teacher or its preprocessing in inference mode.

    Args:
        part: a Keras layer, a torch module or another callable.
        inputs: the inputs of `part`.
        modules: the torch modules in it, if they are known already.
    """
    if modules is None:
        modules = _torch_modules.modules_of(part)
    with _torch_modules.evaluating(modules):
        if isinstance(part, keras.layers.Layer):
            return part(inputs, training=False)
        return part(inputs)


def is_compilable(part):
    """Return whether Keras can compile a teacher or preprocessing."""
    return isinstance(part, (keras.layers.Layer, InPrecision))


def _in_step(part, view, modules=None):
    """Run a part inside a training step, where a view may be symbolic."""
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
            "where its input is symbolic and has no values. If the function "
            "requires values (NumPy, another framework, a file, a server), "
            "record its outputs with `record_teacher` and train from the "
            "recording, or use `compile(..., run_eagerly=True)`. If it uses "
            "only `keras.ops`, correct the error. Received: "
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
            f"The teacher {member.name!r} is not built, so it has no weights "
            "yet. Train it, or load its weights first."
        )
    if _torch_modules.is_module(member):
        if _torch_modules.is_without_weights(member):
            raise ValueError(
                f"The teacher {type(member).__name__} has lazy layers, which "
                "have no weights yet. Load its weights first."
            )


def _check_runs_in_step(part):
    if _torch_modules.is_module(part) and not _backend.runs_torch_modules():
        raise TypeError(
            "Only the torch backend can run a torch.nn.Module in a training "
            f"step. Received: {type(part).__name__} on the "
            f"{keras.backend.backend()!r} backend. Record its outputs with "
            "`record_teacher`, which accepts it on every backend, and train "
            "with `teacher=RecordedTeacher(path)`; or train with "
            "`KERAS_BACKEND=torch`."
        )
