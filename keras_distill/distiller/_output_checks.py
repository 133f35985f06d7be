"""What a Distiller refuses of the outputs of its models, at `compile()`.

What a model returns is read from its graph: the shapes of its outputs, and the
activation that each output ends in. Models without a known graph (subclassed
models, functions) are checked by their values in the first steps, see
`_value_watch.py`.
"""

import keras

from keras_distill._graphs import _outputs
from keras_distill.distiller import _warnings
from keras_distill.losses import _label_loss
from keras_distill.losses import _shapes


def hints_alone(student, live_teacher, hints):
    """Return whether `loss=None` means that only hints are minimised.

    If so, it is logged.
    """
    if not hints or _predicts_classes(student, live_teacher):
        return False
    _warnings.hints_alone()
    return True


def _predicts_classes(student, live_teacher):
    """Return whether the outputs may be compared as classes.

    Models without a known graph may. In a known graph, both models must have
    the same outputs, and each output must end in a softmax, or in a layer of
    units without an activation.
    """
    outputs = _outputs.known_outputs(student)
    if outputs is None:
        return True
    for member in live_teacher.members:
        teacher_outputs = _known_outputs(member)
        for path in _outputs.output_paths(outputs):
            output = _outputs.at(outputs, path)
            if not _ends_as_classes(output):
                return False
            if teacher_outputs is None:
                continue
            teacher = _outputs.teacher_at(teacher_outputs, path, outputs)
            if teacher.shape[-1] != output.shape[-1]:
                return False
            if not _ends_as_classes(teacher):
                return False
    return True


def _ends_as_classes(output):
    layer, activation = _outputs.ending_activation(output)
    if layer is None or activation == "softmax":
        return True
    has_units = hasattr(layer, "units") or hasattr(layer, "filters")
    return activation == "linear" and has_units and output.shape[-1] != 1


def check_models(student, live_teacher, recording, objective):
    """Raise if outputs of the models cannot be compared as the losses require.

    Args:
        student: the student.
        live_teacher: the `LiveTeacher`.
        recording: the `RecordedTeacher`, or `None`.
        objective: the `Objective`.
    """
    student_outputs = _outputs.known_outputs(student)
    if student_outputs is None:
        return
    terms = objective.terms_by_output(student_outputs)
    _check_endings("student", student, student_outputs, terms)
    for member in live_teacher.members:
        teacher_outputs = _known_outputs(member)
        if teacher_outputs is not None:
            _check_order(student, member)
            _check_structure(teacher_outputs, student_outputs, terms)
            _check_endings("teacher", member, teacher_outputs, terms)
    if recording is not None:
        _check_recording(recording, student_outputs, terms)


def _known_outputs(member):
    if not isinstance(member, keras.Model):
        return None
    return _outputs.known_outputs(member)


def check_replay(distiller, recording, chunks):
    """Raise if a recording cannot replace the teacher of a Distiller."""
    recording.check_augment(distiller.augment)
    if distiller.on_policy is not None:
        raise ValueError(
            "The teacher must score text that the student writes during "
            f"training. Received: on_policy={distiller.on_policy} and a "
            "RecordedTeacher. Pass the teacher itself."
        )
    manifest = recording.manifest
    whole = manifest["top_k"] is None and manifest["head"] is None
    if chunks is not None and whole:
        raise ValueError(
            "This recording holds all outputs of each token, so a batch of "
            "them takes the memory that `tokens_per_chunk` saves. Received: "
            f"tokens_per_chunk={chunks.size} and a recording without `top_k`. "
            "Record the teacher with `hidden_states=True` or `top_k=16`, pass "
            "the teacher itself, or leave `tokens_per_chunk` out."
        )
    if distiller.hints:
        raise ValueError(
            "A recorded teacher has outputs but no features. Received: "
            f"hints={list(distiller.hints)}. Remove the hints, or train with "
            "the teacher model itself."
        )


def _check_recording(recording, student_outputs, terms):
    _check_structure(recording.specs(), student_outputs, terms)
    for path, losses in terms:
        for loss in _teacher_losses(losses):
            recording.check_loss(loss)
            for ending in recording.endings(path):
                _check_ending("teacher", loss, **ending)


def _teacher_losses(terms):
    return [term.loss for term in terms if term.uses_teacher]


def _check_order(student, teacher):
    """Raise if both have the same names in another order.

    Outputs in a list are compared by position.
    """
    names = [
        list(getattr(model, "output_names", None) or [])
        for model in (student, teacher)
    ]
    in_a_list = isinstance(_outputs.known_outputs(student), (list, tuple))
    if (
        in_a_list
        and names[0] != names[1]
        and sorted(names[0]) == sorted(names[1])
    ):
        raise ValueError(
            "Outputs in a list are compared by position, so teacher and "
            "student must return them in the same order. Received: student "
            f"outputs {names[0]}, teacher outputs {names[1]}. Return dicts, or "
            "change the order of one model."
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


# What the last activation of a model says about its outputs.
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
            f"{name} compares {loss.predicts}, but the {role} predicts {kind}. "
            f"{found} Use {_INSTEAD[kind]}."
        )
    if loss.from_logits and kind is not None:
        raise ValueError(
            f"{name} expects logits, but the {role} returns probabilities, "
            f"which would go through a softmax twice. {found} Remove the "
            "activation, or use `from_logits=False` if both models return "
            "probabilities."
        )
    if not loss.from_logits and activation in _NO_PROBABILITIES:
        ending = "softmax" if loss.predicts == "classes" else "sigmoid"
        raise ValueError(
            f"{name} expects probabilities, but the {role} returns logits. "
            f"{found} Use `from_logits=True`, or end both models in a {ending}."
        )


def _check_last_axis(role, layer, output, loss):
    channels_first = getattr(layer, "data_format", "") == "channels_first"
    if loss.predicts == "classes" and channels_first and len(output.shape) > 2:
        raise ValueError(
            f"{type(loss).__name__} expects the classes on the last axis, but "
            f"the {role} returns channels first. Received: outputs of shape "
            f"{tuple(output.shape)} from the layer {layer.name!r}. Add a "
            "`keras.layers.Permute` that moves the channels last."
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
