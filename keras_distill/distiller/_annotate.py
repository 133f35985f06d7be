"""What a step does before Keras's own step: draw the view, run the teacher."""

from keras_distill.distiller._step_data import StepInputs
from keras_distill.distiller._step_data import unpack
from keras_distill.distiller._targets import Targets
from keras_distill.distiller._targets import View
from keras_distill.views._view_of_each import view_of_each


def annotate(data, augment, run_teacher, logs, step):
    """Return `(StepInputs, Targets)` of a batch.

    Args:
        data: a batch as the data gave it, or a replayed batch.
        augment: the `ConsistentAugment` to draw the view with, or `None`.
        run_teacher: function `(view, recorded) -> (outputs, features)`.
        logs: the `Logs`.
        step: function that returns the optimizer's iterations.
    """
    x, y, weights, recorded = unpack(data)
    view, follows = x, None
    if augment is not None:
        view, drawn = augment.draw(x, recorded and recorded.drawn)
        follows = View(augment, drawn, x)
    student_view, teacher_view = view_of_each(view, x)
    outputs, features = run_teacher(teacher_view, recorded)
    chunks = logs.objective.chunks
    return StepInputs(student_view), Targets(
        y,
        weights,
        logs.checked_teacher(outputs),
        features,
        follows,
        logs.objective.moment(step),
        None if chunks is None else chunks.teacher_head(recorded is not None),
    )
