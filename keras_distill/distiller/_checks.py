"""What a Distiller refuses, and what it tells the user to do about it.

The checks run as early as they can: roles and weights when the Distiller is
built, outputs when it is compiled, data when it arrives.
"""

import math
import warnings

import keras
from keras import tree

from keras_distill import _backend
from keras_distill._graphs import _outputs
from keras_distill.distiller import _warnings
from keras_distill.losses import _label_loss
from keras_distill.losses import _shapes


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
    if hasattr(student, "student") and hasattr(student, "teacher"):
        raise TypeError(
            "`student` must be a model of its own. Received a Distiller: "
            f"{student.name!r}. Pass its `student`."
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
        _warnings.random_views("student", student)
    for member in live_teacher.members:
        if isinstance(member, keras.Model):
            _warnings.random_views("teacher", member)


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


def loss_policy(student):
    """Return the dtype policy that decides whether losses are scaled.

    Keras scales the loss of a model whose own policy is `mixed_float16`; a
    model may as well have single layers that compute in float16.
    """
    for layer in student._flatten_layers():
        policy = layer.dtype_policy
        if getattr(policy, "compute_dtype", None) == "float16":
            return keras.dtype_policies.DTypePolicy("mixed_float16")
    return student.dtype_policy


def hints_alone(distiller, live_teacher):
    """Tell whether no loss means the hints and nothing besides; log it."""
    if not distiller.hints:
        return False
    if _predicts_classes(distiller.student, live_teacher):
        return False
    _warnings.hints_alone()
    return True


def _predicts_classes(student, live_teacher):
    """Tell whether the outputs may be compared as classes.

    They may where nothing is known of the models. Where their graphs are known,
    both must have the same outputs, and each must end in a softmax, or in a
    layer of units without an activation.
    """
    outputs = _outputs.known_outputs(student)
    if outputs is None:
        return True
    for member in live_teacher.members:
        answers = None
        if isinstance(member, keras.Model):
            answers = _outputs.known_outputs(member)
        for path in _outputs.output_paths(outputs):
            output = _outputs.at(outputs, path)
            if not _ends_as_classes(output):
                return False
            if answers is None:
                continue
            answer = _outputs.teacher_at(answers, path, outputs)
            if answer.shape[-1] != output.shape[-1]:
                return False
            if not _ends_as_classes(answer):
                return False
    return True


def _ends_as_classes(output):
    layer, activation = _outputs.ending_activation(output)
    if layer is None or activation == "softmax":
        return True
    has_units = hasattr(layer, "units") or hasattr(layer, "filters")
    return activation == "linear" and has_units and output.shape[-1] != 1


def check_outputs(student, live_teacher, objective):
    """Raise if what the models return can't be compared as the losses will.

    Models without a graph (subclassed ones, callables) tell nothing before
    they run; their outputs are compared in the first step.
    """
    student_outputs = _outputs.known_outputs(student)
    if student_outputs is None:
        return
    terms = objective.terms_of(student_outputs)
    _check_endings("student", student, student_outputs, terms)
    for member in live_teacher.members:
        teacher_outputs = (
            _outputs.known_outputs(member)
            if isinstance(member, keras.Model)
            else None
        )
        if teacher_outputs is not None:
            _check_order(student, member)
            _check_structure(teacher_outputs, student_outputs, terms)
            _check_endings("teacher", member, teacher_outputs, terms)


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
    for path, losses in terms:
        for loss in _teacher_losses(losses):
            recording.check_loss(loss)
            for ending in recording.endings(path):
                _check_ending("teacher", loss, **ending)


def _teacher_losses(terms):
    return [term.loss for term in terms if term.uses_teacher]


def _check_order(student, teacher):
    """Raise if the same names stand in another order: places are compared."""
    names = [
        list(getattr(model, "output_names", None) or [])
        for model in (student, teacher)
    ]
    by_place = isinstance(_outputs.known_outputs(student), (list, tuple))
    if (
        by_place
        and names[0] != names[1]
        and sorted(names[0]) == sorted(names[1])
    ):
        raise ValueError(
            "Outputs in a list are compared place by place, and teacher and "
            "student have the same names in another order. Received: student "
            f"outputs {names[0]}, teacher outputs {names[1]}. Return dicts, or "
            "one order in both."
        )


def _check_structure(teacher_outputs, student_outputs, terms):
    for path, losses in terms:
        for loss in _teacher_losses(losses):
            teacher = _outputs.teacher_at(
                teacher_outputs, path, student_outputs
            )
            check = _shapes.check_same_shape
            if loss.predicts == "classes":
                check = _shapes.check_same_classes
            check(
                teacher.shape,
                _outputs.at(student_outputs, path).shape,
                "/".join(map(str, path)),
            )


# What the last activation of a model says of its outputs.
_ENDS = {"softmax": "classes", "sigmoid": "labels", "hard_sigmoid": "labels"}
_INSTEAD = {
    "classes": "`ClassicKD`, `FunctionMatching` or another loss for classes",
    "labels": "`BinaryKD`, the loss for independent labels",
}


def _check_endings(role, model, outputs, terms):
    for path, losses in terms:
        if not losses:
            continue
        try:
            output = _outputs.teacher_at(outputs, path)
        except ValueError:
            continue  # A teacher without the output of a label loss.
        layer, activation = _outputs.ending_activation(output)
        ending = {
            "model": model.name,
            "layer": getattr(layer, "name", None),
            "activation": activation,
        }
        for term in losses:
            if term.uses_teacher:
                _check_ending(role, term.loss, **ending)
                _check_last_axis(role, layer, output, term.loss)
            elif role == "student" and not term.compares_with_teacher:
                _check_label_loss(term.loss, **ending)


def _found(role, model, layer, activation):
    return (
        f"Received: the {role} {model!r} ends in the layer {layer!r} with "
        f"activation={activation!r}."
    )


def _check_ending(role, loss, model, layer, activation):
    if loss.predicts not in _INSTEAD:
        return
    found = _found(role, model, layer, activation)
    name = f"{type(loss).__name__}(from_logits={loss.from_logits})"
    kind = _ENDS.get(activation)
    if kind is not None and kind != loss.predicts:
        raise ValueError(
            f"{name} compares {loss.predicts}, and the {role} predicts {kind}. "
            f"{found} Use {_INSTEAD[kind]}."
        )
    if loss.from_logits and kind is not None:
        raise ValueError(
            f"{name} takes logits, and the {role} returns probabilities, "
            f"which it would soften a second time. {found} Remove the "
            "activation, or use `from_logits=False` if both models return "
            "probabilities."
        )
    if not loss.from_logits and activation in _NO_PROBABILITIES:
        ending = "softmax" if loss.predicts == "classes" else "sigmoid"
        raise ValueError(
            f"{name} takes probabilities, and the {role} returns logits. "
            f"{found} Use `from_logits=True`, or end both models in a {ending}."
        )


def _check_last_axis(role, layer, output, loss):
    channels_first = getattr(layer, "data_format", "") == "channels_first"
    if loss.predicts == "classes" and channels_first and len(output.shape) > 2:
        raise ValueError(
            f"{type(loss).__name__} takes the last axis for the classes, and "
            f"the {role} returns the channels first. Received: outputs of shape"
            f" {tuple(output.shape)} from the layer {layer.name!r}. End the "
            "model in `keras.layers.Permute` that moves the channels last."
        )


_NO_PROBABILITIES = ("linear", "log_softmax", "log_sigmoid", "tanh")


def _check_label_loss(loss, model, layer, activation):
    """Raise if a plain Keras loss contradicts the student's last layer."""
    from_logits = getattr(loss, "from_logits", None)
    if from_logits is None and _label_loss.has_from_logits(loss.call):
        from_logits = False  # A function by name: the default of Keras.
    if from_logits is None:
        return
    if from_logits and activation in _ENDS:
        given, returned = "logits", "probabilities"
    elif not from_logits and activation in _NO_PROBABILITIES:
        given, returned = "probabilities", "logits"
    else:
        return
    raise ValueError(
        f"The loss {loss.name!r} has from_logits={from_logits}: it takes "
        f"{given}, and the student returns {returned}. "
        f"{_found('student', model, layer, activation)} Give the loss with "
        f"`from_logits={not from_logits}`."
    )


def check_not_empty(x):
    """Raise if data that knows its length has none."""
    try:
        length = len(tree.flatten(x)[0])
    except (TypeError, IndexError):
        return  # Data of unknown length tells when it runs.
    if length == 0:
        raise ValueError(_backend.EMPTY)
