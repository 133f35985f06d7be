"""Distiller: a student, a teacher and a view, trained by plain `fit()`.

`train_step` does one thing: it turns the batch into an annotated batch (the
view drawn, the teacher's outputs attached, outside the gradient) and hands it
to Keras's own step. `test_step` does the same with the plain batch. So all
that Keras's step knows (mixed precision, distribution, gradient accumulation,
regularisers) works here without a line about it.

Left out: student and teacher in one graph, and a frozen copy of the teacher.
The teacher is borrowed (see `teachers/live.py`).
"""

import functools

import keras
from keras import ops

from keras_distill import _backend
from keras_distill._graphs import _outputs
from keras_distill.distiller import _checks
from keras_distill.distiller import _warnings
from keras_distill.distiller._building import BuildsSteps
from keras_distill.distiller._callback_modes import set_directions
from keras_distill.distiller._hint_terms import HintTerms
from keras_distill.distiller._hints import TakesHints
from keras_distill.distiller._hints import split
from keras_distill.distiller._logs import KeepsLogs
from keras_distill.distiller._metrics_by_output import TeacherMetrics
from keras_distill.distiller._metrics_by_output import without_teacher_metrics
from keras_distill.distiller._objective import Leaf
from keras_distill.distiller._objective import Objective
from keras_distill.distiller._saving import SavesStudent
from keras_distill.distiller._targets import Targets
from keras_distill.distiller._targets import View
from keras_distill.distiller._value_watch import ValueWatch
from keras_distill.losses import FunctionMatching
from keras_distill.recording._batches import labels_or_none
from keras_distill.recording._batches import unpack
from keras_distill.recording._batches import with_labels_or_none
from keras_distill.recording._recorded_teacher import RecordedTeacher
from keras_distill.recording._replay import arguments_of_fit
from keras_distill.recording._replay import check_one_replica
from keras_distill.recording._replay import replayed
from keras_distill.teachers._live_teacher import LiveTeacher
from keras_distill.views import ConsistentAugment
from keras_distill.views._consistent_augment import view_of_each


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(TakesHints, KeepsLogs, SavesStudent, BuildsSteps, keras.Model):
    """Trains a student to be like its teacher, in plain `fit()`.

    Each training step draws one view of the batch, shows it to both models, and
    moves the student towards the teacher. The student is the caller's own
    object, trained in place; the teacher is only read. `call`, `predict`,
    `evaluate` and `summary` are the student's.

    Saving: `save_weights`, `ModelCheckpoint`, `BackupAndRestore` and `save`
    write the student, the optimizer and the state of the random generators, and
    nothing of the teacher. After `keras.models.load_model`, assign
    `distiller.teacher` and go on with `fit()`. To ship the student, save it
    alone: `distiller.student.save("student.keras")`.

    Args:
        student: the `keras.Model` to train.
        teacher: a built `keras.Model`; or any callable `inputs -> outputs`; or
            a list of these, whose probabilities are averaged; or a
            `RecordedTeacher`. It runs with `training=False`. On JAX the weights
            that a plain function reads from inside become constants of the
            compiled step: pass models.
        augment: `ConsistentAugment`, or a layer that it takes, or `None`. Draws
            the view, in training only.
        hints: list of `Hint`, which draw inner layers of the student towards
            inner layers of the teacher.
        student_preprocessing: layer or callable applied to the view before the
            student alone, in training and inference: rescaling, resizing,
            picking an input. `None` for none; a KerasHub task's own
            `preprocessor` is then used.
        teacher_preprocessing: the same before the teacher alone.
        teacher_dtype: `"bfloat16"` or `"float16"` to run the teacher in that
            precision, whatever it was made for; `None` for its own.
        name: name of the model.

    Call arguments:
        inputs: what the student takes (before `student_preprocessing`).
        training: bool, passed to the student.

    Raises:
        TypeError: if the teacher can't be called, or the student is no model.
        ValueError: if teacher and student are the same or share weights, or if
            preprocessing has trainable weights.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import ClassicKD, Distiller

    def mlp(units):
        return keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(units, "relu"),
             keras.layers.Dense(3)]
        )

    x = np.random.rand(64, 8).astype("float32")
    y = np.random.randint(0, 3, size=64)
    distiller = Distiller(student=mlp(4), teacher=mlp(64))
    distiller.compile("adam", loss=ClassicKD(), metrics=["accuracy"])
    distiller.fit(x, y, epochs=2, verbose=0)
    distiller.student.save("student.keras")
    ```
    """

    def __init__(
        self,
        *positional,
        student=None,
        teacher=None,
        augment=None,
        hints=(),
        student_preprocessing=None,
        teacher_preprocessing=None,
        teacher_dtype=None,
        name=None,
    ):
        _checks.check_roles(positional, student, teacher)
        _warnings.own_steps(student)
        # The shared view must reach each model's own preprocessing untouched,
        # so the Distiller itself casts nothing. Its policy is the student's:
        # Keras looks there for whether the loss has to be scaled.
        super().__init__(
            name=name, dtype=_checks.loss_policy(student), autocast=False
        )
        self.student = student
        self.student_preprocessing = _checks.preprocessing(
            "student_preprocessing", student_preprocessing, student
        )
        self.teacher_preprocessing = _checks.preprocessing(
            "teacher_preprocessing", teacher_preprocessing, teacher
        )
        if augment is not None and not isinstance(augment, ConsistentAugment):
            augment = ConsistentAugment(augment)
        self.augment = augment
        self.teacher_dtype = teacher_dtype
        self._fitting = False
        self._take_hints(hints)
        self.teacher = teacher
        self.built = student.built and self._hints_ready

    @property
    def teacher(self):
        """The teacher as it was given. Assigning another one takes effect."""
        return self._recording or self._live_teacher.given

    @teacher.setter
    def teacher(self, teacher):
        recording = teacher if isinstance(teacher, RecordedTeacher) else None
        if recording is not None:
            _checks.check_replay(recording, self.augment, self.hints)
            teacher = recording.live_or_absent
        live = LiveTeacher(
            teacher, self.teacher_preprocessing, self.teacher_dtype
        )
        _checks.check_no_shared_weights(self.student, live)
        self._find_hints_in(live)
        self._live_teacher = live
        self._recording = recording
        if self.compiled:
            self._check_outputs(self._objective)
            # The compiled steps hold the teacher before this one. During a
            # `fit()`, a callback may assign one, and the next step is another.
            if self.train_function is not None:
                self.make_train_function(force=True)
            self.test_function = None

    def __setattr__(self, name, value):
        if name == "teacher":
            # Keras and PyTorch adopt every model that is assigned to them.
            # This leads to the setter above and nowhere else.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def output_names(self):
        """The names of the student's outputs, where it has any."""
        return self.student.output_names

    def call(self, inputs, training=None):
        if self.student_preprocessing is not None:
            inputs = self.student_preprocessing(inputs)
        return self._run_student(inputs, training)

    def summary(self, *args, **kwargs):
        """Print the student's summary, with the arguments of Keras."""
        return self.student.summary(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Export the student, with the arguments of `keras.Model.export`.

        Raises:
            ValueError: if the Distiller preprocesses for the student, which
                the file would leave out.
        """
        if self.student_preprocessing is not None:
            raise ValueError(
                "The exported file would leave out `student_preprocessing`. "
                f"Received: {self.student_preprocessing!r}. Put it in front of "
                "the student in a model of its own, or export "
                "`distiller.student` and preprocess its inputs."
            )
        return self.student.export(*args, **kwargs)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        *,
        check_values=True,
        log_schedules=False,
        **kwargs,
    ):
        """Choose how to train; the arguments are those of `keras.Model`.

        Args:
            optimizer: as for `keras.Model.compile`.
            loss: `ClassicKD`, `FunctionMatching` or another
                `DistillationLoss`; for several outputs a list or dict of
                losses. Other Keras losses compare with the labels. `None`
                means `FunctionMatching()`.
            loss_weights: floats in the structure of `loss`.
            metrics: `TeacherAgreement` and `TeacherDivergence` compare with the
                teacher, all other metrics with the labels. Where the view
                mixes images, label metrics are computed in validation only.
            weighted_metrics: the same, with `sample_weight`.
            check_values: bool. Whether to raise an error that names the batch
                where the teacher returns NaN, where outputs are probabilities
                in the place of logits or the reverse, or where labels are no
                classes.
            log_schedules: bool. Whether today's value of each schedule and
                variable among the numbers of the losses is logged.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile` and
                `auto_scale_loss`, as for `keras.Model.compile`.

        Raises:
            ValueError: if the outputs of teacher and student don't fit each
                other, or contradict the loss's `from_logits`.
        """
        if self._fitting:
            raise RuntimeError(
                "`compile()` was called during `fit()`, which holds the steps "
                "compiled before. To change the temperature, alpha or a weight "
                "during one `fit()`, give the loss a schedule; otherwise call "
                "`compile()` between two fits."
            )
        given = {
            "optimizer": optimizer,
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "check_values": check_values,
            "log_schedules": log_schedules,
            **kwargs,
        }
        if loss is None and not _checks.hints_alone(self, self._live_teacher):
            loss = FunctionMatching()
        names = getattr(self.student, "output_names", None)
        num_outputs = len(names or [""])
        objective = Objective(
            loss,
            loss_weights,
            names,
            HintTerms(self.hints),
            ValueWatch() if check_values else None,
        )
        self._check_outputs(objective)
        teacher_metrics = TeacherMetrics(metrics, weighted_metrics, objective)
        outputs = _outputs.known_outputs(self.student)
        if outputs is not None:
            teacher_metrics.build(outputs)
        _warnings.teacher_unused(objective, teacher_metrics)
        self._start_logs(objective, teacher_metrics, log_schedules)
        super().compile(
            optimizer=optimizer,
            loss=objective,
            metrics=without_teacher_metrics(metrics, num_outputs),
            weighted_metrics=without_teacher_metrics(
                weighted_metrics, num_outputs
            ),
            **kwargs,
        )
        self._keep_compile_arguments({**given, "optimizer": self.optimizer})

    def _check_outputs(self, objective):
        _checks.check_outputs(self.student, self._live_teacher, objective)
        if self._recording is not None:
            _checks.check_recording(self.student, self._recording, objective)

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, y=None, *args, **kwargs):
        _checks.check_not_empty(x)
        _backend.check_processes()
        self._steps_taken = 0
        arguments = arguments_of_fit(x, y, args, kwargs)
        arguments["y"] = labels_or_none(x, y, arguments)
        arguments["validation_data"] = with_labels_or_none(
            arguments.get("validation_data")
        )
        if self.compiled:
            set_directions(arguments.get("callbacks"), self._logs)
        if self._recording is not None:
            arguments = replayed(self._recording, arguments)
        self._fitting = True
        try:
            history = super().fit(**arguments)
        finally:
            self._fitting = False
        self._settle_logs()
        if history.epoch and not self._steps_taken:
            raise ValueError(_backend.EMPTY)
        return history

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, x=None, y=None, *args, **kwargs):
        _checks.check_not_empty(x)
        y = labels_or_none(x, y, kwargs)
        logs = super().evaluate(x, y, *args, **kwargs)
        self._settle_logs()
        return logs

    def train_step(self, *arguments):
        return self._step(super().train_step, arguments, training=True)

    def test_step(self, *arguments):
        return self._step(super().test_step, arguments, training=False)

    def _step(self, step, arguments, training):
        with self._student_gives_features():
            return _backend.run_step(
                self,
                step,
                functools.partial(self._annotate, training=training),
                functools.partial(self._variables_read, training),
                arguments,
            )

    def _variables_read(self, training):
        """Return the variables that annotating reads, the student's aside."""
        read = [*self._live_teacher.variables, *self._objective.variables]
        if self._objective.uses_step and not training:
            # Training has the optimizer's state at hand, evaluation has not.
            read += [v for v in self.optimizer.variables if v.shape == ()]
        return read

    def _annotate(self, data, training):
        """Return the batch with its view drawn and its targets attached."""
        x, y, weights, record = unpack(data)
        view, follows = x, None
        if training and self.augment is not None:
            view, drawn = self.augment.draw(x, record and record.drawn)
            follows = View(self.augment, drawn, x)
        student_view, teacher_view = view_of_each(view)
        teacher, features = self._check_teacher(
            self._outputs_of_teacher(teacher_view, record, training)
        )
        moment = self._objective.moment(lambda: self.optimizer.iterations)
        return student_view, Targets(
            y, weights, teacher, features, follows, moment
        )

    def _outputs_of_teacher(self, view, record, training):
        """Return the list of the teachers' outputs, and the features."""
        if self._recording is None or not training:
            return self._run_teacher(view)
        check_one_replica()
        if record is None:
            raise ValueError(
                "Training from a recording goes through `fit()`, which knows "
                "the batch and its views. Received a batch without them."
            )
        return [self._recording.structured(record.answers)], []

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if y.teacher is None:
            return ops.zeros(())  # Keras builds its state; ours has none.
        outputs, features = split(y_pred)
        return super().compute_loss(
            x,
            Leaf(y),
            Leaf((outputs, self._projected(features))),
            None,
            training,
        )
