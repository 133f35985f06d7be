"""What `compile()` makes of its arguments: the objective and the logs."""

from keras_distill._graphs import _outputs
from keras_distill.distiller import _output_checks
from keras_distill.distiller import _warnings
from keras_distill.distiller._logs import Logs
from keras_distill.distiller._objective import Objective
from keras_distill.distiller._teacher_metrics import TeacherMetrics
from keras_distill.distiller._value_watch import ValueWatch
from keras_distill.losses import FunctionMatching


def make_logs(student, live_teacher, recording, hints, arguments, chunks=None):
    """Return the `Logs`, which hold the `Objective`.

    Args:
        student: the student.
        live_teacher: the `LiveTeacher`.
        recording: the `RecordedTeacher`, or `None`.
        hints: list of `Hint`.
        arguments: dict of the arguments of `Distiller.compile`.
        chunks: the `TokenChunks`, or `None`.

    Raises:
        ValueError: if the outputs of the models do not fit the loss.
    """
    if chunks is not None:
        chunks.check_metrics(
            arguments["metrics"], arguments["weighted_metrics"]
        )
    loss = arguments["loss"]
    if loss is None and not _output_checks.hints_alone(
        student, live_teacher, hints
    ):
        loss = FunctionMatching()
    objective = Objective(
        loss,
        arguments["loss_weights"],
        getattr(student, "output_names", None),
        hints,
        ValueWatch() if arguments["check_values"] else None,
        chunks,
    )
    _output_checks.check_models(student, live_teacher, recording, objective)
    metrics = TeacherMetrics(
        arguments["metrics"], arguments["weighted_metrics"], objective
    )
    outputs = _outputs.known_outputs(student)
    if outputs is not None:
        metrics.build(outputs)
    _warnings.teacher_unused(objective, metrics)
    return Logs(objective, metrics, arguments["log_schedules"])
