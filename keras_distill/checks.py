"""What a Distiller refuses, and what it tells the user to do about it.

The checks run as early as they can: roles and weights when the Distiller is
built, outputs when it is compiled, data when it arrives.
"""

import math
import warnings

import keras
from keras import tree

from keras_distill import _backend
from keras_distill import _outputs
from keras_distill.losses.shapes import check_same_classes


def check_roles(positional, student, teacher):
    """Raise unless there are a student to train and another teacher."""
    if positional or student is None or teacher is None:
        raise TypeError(
            "Name the two roles: `Distiller(student=..., teacher=...)`. "
            "Swapped roles would train without an error. Received: "
            f"{len(positional)} unnamed arguments, student={student!r}, "
            f"teacher={teacher!r}"
        )
    if not isinstance(student, keras.Model):
        raise TypeError(
            "`student` must be a keras.Model. Received: "
            f"{student!r} of type {type(student).__name__}"
        )
    if student is teacher:
        raise ValueError(
            "Teacher and student are the same model. Received: "
            f"{student.name!r} twice. Make the student a model of its own, "
            "e.g. with `keras.models.clone_model`."
        )


def check_no_shared_weights(student, live_teacher):
    """Raise if training the student would change the teacher."""
    taught = {id(variable): variable for variable in student.weights}
    shared = [v.path for v in live_teacher.variables if id(v) in taught]
    if shared:
        raise ValueError(
            "The student shares weights with the teacher, so the teacher "
            f"would change while it teaches. Received: {len(shared)} shared "
            f"weights, such as {shared[:3]}. Copy the layers: "
            "`keras.models.clone_model(model)` and `set_weights`."
        )
    if student.built:
        _warn_if_larger(student, live_teacher.members)


def _warn_if_larger(student, members):
    sizes = [_size(m) for m in members if isinstance(m, keras.Model)]
    if sizes and _size(student) > sum(sizes):
        warnings.warn(
            f"The student has {_size(student):,} parameters and the "
            f"teacher {sum(sizes):,}. Are the two swapped?",
            stacklevel=2,
        )


def _size(model):
    # Without single numbers: a student that `quantize_aware` made of its
    # teacher has the ranges of its activations on top.
    return sum(math.prod(w.shape) for w in model.weights if len(w.shape))


def preprocessing(argument, given, model):
    """Return the preprocessing of a model: the one given, or its own.

    A KerasHub task carries a `preprocessor` that its `predict` applies and its
    `call` does not.
    """
    if given is None:
        attached = getattr(model, "preprocessor", None)
        if attached is None:
            return None
        given = getattr(attached, "image_converter", None)
        if given is None:
            raise ValueError(
                f"The preprocessor of {model.name!r} "
                f"({type(attached).__name__}) can't run inside a training "
                "step. Apply it in the data pipeline, and set "
                f"`{model.name}.preprocessor = None`."
            )
    if not callable(given):
        raise TypeError(
            f"`{argument}` must be a layer or a callable. Received: {given!r}"
        )
    weights = getattr(given, "trainable_weights", [])
    if weights:
        raise ValueError(
            f"`{argument}` must have nothing to train. Received: "
            f"{given.name!r} with {len(weights)} trainable weights. Make it "
            "part of the model, or set its `trainable` to False."
        )
    return given


def check_outputs(student, live_teacher, objective):
    """Raise if what the models return can't be compared as the losses will.

    Models without a graph (subclassed ones, callables) tell nothing before
    they run; their outputs are compared in the first step.
    """
    student_outputs = _outputs.known_outputs(student)
    if student_outputs is None:
        return
    terms = objective.terms_of(student_outputs)
    _check_endings("student", student, terms)
    for member in live_teacher.members:
        teacher_outputs = (
            _outputs.known_outputs(member)
            if isinstance(member, keras.Model)
            else None
        )
        if teacher_outputs is not None:
            _check_structure(teacher_outputs, student_outputs, terms)
            _check_endings("teacher", member, terms)


def check_replay(recording, augment, hints):
    """Raise if a recording can't stand for the teacher here."""
    recording.check_augment(augment)
    if hints:
        raise ValueError(
            "A recording holds outputs and no inner features. Received: "
            f"hints={list(hints)}. Leave them out, or train with the teacher "
            "itself."
        )


def check_recording(student, recording, objective):
    """Raise if recorded answers can't be compared as the losses will."""
    student_outputs = _outputs.known_outputs(student)
    if student_outputs is None:
        return
    terms = objective.terms_of(student_outputs)
    _check_structure(recording.specs(), student_outputs, terms)
    recorded = recording.manifest["from_logits"]
    for _, term in terms:
        if term and term.uses_teacher and term.loss.from_logits != recorded:
            raise ValueError(
                f"The answers were recorded with from_logits={recorded}. "
                f"Received: {type(term.loss).__name__}(from_logits="
                f"{term.loss.from_logits}). Use the same in both."
            )


def _check_structure(teacher_outputs, student_outputs, terms):
    for path, term in terms:
        if term is None or not term.uses_teacher:
            continue
        try:
            teacher = _outputs.at(teacher_outputs, path)
        except (KeyError, IndexError, TypeError):
            teacher = None
        if teacher is None or tree.is_nested(teacher):
            structures = [
                tree.map_structure(lambda o: tuple(o.shape), outputs)
                for outputs in (teacher_outputs, student_outputs)
            ]
            raise ValueError(
                "The outputs of teacher and student must have the same "
                f"structure. Received: teacher outputs={structures[0]}, "
                f"student outputs={structures[1]}"
            )
        check_same_classes(
            teacher.shape,
            _outputs.at(student_outputs, path).shape,
            "/".join(map(str, path)),
        )


def _check_endings(role, model, terms):
    outputs = _outputs.known_outputs(model)
    for path, term in terms:
        if term is None or not term.uses_teacher:
            continue
        layer, activation = _outputs.ending_activation(
            _outputs.at(outputs, path)
        )
        loss = (
            f"{type(term.loss).__name__}(from_logits={term.loss.from_logits})"
        )
        found = (
            f"Received: the {role} {model.name!r} ends in the layer "
            f"{getattr(layer, 'name', None)!r} with activation={activation!r}."
        )
        if term.loss.from_logits and activation in ("softmax", "sigmoid"):
            raise ValueError(
                f"{loss} takes logits, and the {role} returns probabilities, "
                f"which it would soften a second time. {found} Remove the "
                "activation, or use `from_logits=False` if both models return "
                "probabilities."
            )
        if not term.loss.from_logits and activation == "linear":
            raise ValueError(
                f"{loss} takes probabilities, and the {role} returns logits. "
                f"{found} Use `from_logits=True`, or end both models in a "
                "softmax."
            )


def check_not_empty(x):
    """Raise if data that knows its length has none."""
    try:
        length = len(tree.flatten(x)[0])
    except (TypeError, IndexError):
        return  # Data of unknown length tells when it runs.
    if length == 0:
        raise ValueError(_backend.EMPTY)
