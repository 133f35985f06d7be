"""The card of a Distiller in a notebook: what learns from what, and how."""

from keras_distill._schedules import is_schedule
from keras_distill._tables import html_table
from keras_distill.recording import RecordedTeacher


def html_card(distiller, objective):
    """Return the card of a Distiller in HTML, with one row per part.

    Args:
        distiller: the `Distiller`.
        objective: its `Objective`, or `None` before `compile()`.
    """
    return html_table(
        [
            ["Distiller", distiller.name],
            ["student", _model(distiller.student)],
            ["teacher", _teacher(distiller.teacher)],
            ["view", _view(distiller.augment)],
            ["hints", ", ".join(map(repr, distiller.hints)) or "none"],
            ["loss", _loss(objective)],
        ]
    )


def _model(model):
    kind = type(model).__name__
    name = getattr(model, "name", "")
    if not getattr(model, "built", False):
        return f"{name} ({kind}, not built)" if name else kind
    return f"{name} ({kind}, {model.count_params():,} parameters)"


def _teacher(teacher):
    if isinstance(teacher, (list, tuple)):
        return " + ".join(map(_teacher, teacher))
    if isinstance(teacher, RecordedTeacher):
        return f"recorded in {teacher.path}, {teacher.epochs} epochs"
    return _model(teacher)


def _view(augment):
    if augment is None:
        return "none"
    return ", ".join(type(layer).__name__ for layer in augment.layers)


def _loss(objective):
    if objective is None:
        return "not compiled"
    return ", ".join(map(_term, objective.output_terms)) or "hints only"


def _term(term):
    loss = term.loss
    if not term.compares_with_teacher:
        return f"{term.prefix}{loss.name} (labels)"
    numbers = []
    for name in loss.controls:
        value = getattr(loss, name)
        shown = "scheduled" if is_schedule(value) else f"{value:g}"
        numbers.append(f"{name}={shown}")
    return f"{term.prefix}{type(loss).__name__}({', '.join(numbers)})"
