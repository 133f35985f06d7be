"""Distiller: a student, a teacher and a view, trained by plain `fit()`.

`train_step` does one thing: it draws the view, attaches the teacher's outputs
to the batch, outside the gradient, and calls Keras's own step on the result.
`test_step` does the same with the plain batch. So everything that Keras's step
does (mixed precision, distribution, gradient accumulation, regularisers) works
here without any code for it.

The class holds its helpers in plain objects, which Keras does not track: the
`LiveTeacher`, the `HintFeatures`, and per `compile()` the `Logs` with the
`Objective`. Its methods are those that Keras calls.

Left out: student and teacher in one graph, and a frozen copy of the teacher
(see `teachers/_live_teacher.py`).
"""

import functools
from typing import Any

import keras
from keras import ops

from keras_distill import _backend
from keras_distill import _processes
from keras_distill._keras_internals import compiled_label_metrics
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.distiller import _compiled_steps
from keras_distill.distiller import _model_checks
from keras_distill.distiller import _output_checks
from keras_distill.distiller import _saving
from keras_distill.distiller import _warnings
from keras_distill.distiller._annotate import annotate
from keras_distill.distiller._callback_modes import set_modes
from keras_distill.distiller._card import html_card
from keras_distill.distiller._compilation import make_logs
from keras_distill.distiller._fit_arguments import evaluate_arguments
from keras_distill.distiller._fit_arguments import fit_arguments
from keras_distill.distiller._hint_features import HintFeatures
from keras_distill.distiller._objective import Leaf
from keras_distill.distiller._on_policy import on_policy_of
from keras_distill.distiller._step_data import StepInputs
from keras_distill.distiller._step_data import outputs_and_features
from keras_distill.distiller._teacher_metrics import without_teacher_metrics
from keras_distill.distiller._text import tokenized
from keras_distill.distiller._token_chunks import token_chunks
from keras_distill.losses import Hint
from keras_distill.recording import RecordedTeacher
from keras_distill.recording._replay import teacher_outputs
from keras_distill.teachers._live_teacher import LiveTeacher
from keras_distill.views import ConsistentAugment


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(keras.Model):
    """Trains a student to match its teacher, with plain `fit()`.

    Each training step draws one view of the batch, shows it to both models, and
    moves the student towards the teacher. The student is the caller's own
    object, trained in place; the teacher is only read. `call`, `predict`,
    `evaluate` and `summary` are the student's.

    Saving: `save_weights`, `ModelCheckpoint`, `Resume` and `save` write the
    student, the optimizer and the state of the random generators, and nothing
    of the teacher. After `keras.models.load_model`, assign
    `distiller.teacher` and continue with `fit()`. To ship the student, save it
    alone: `distiller.student.save("student.keras")`.

    Args:
        student: the `keras.Model` to train.
        teacher: a built `keras.Model`; or any callable `inputs -> outputs`; or
            a list of these, whose probabilities are averaged; or a
            `RecordedTeacher`. It runs with `training=False`. On JAX the weights
            that a plain function reads from inside become constants of the
            compiled step: pass models.
        augment: `ConsistentAugment`, or a layer that it accepts, or `None`.
            Draws the view, in training only.
        hints: list of `Hint`, which draw inner layers of the student towards
            inner layers of the teacher.
        student_preprocessing: layer or callable applied to the view before the
            student alone, in training and inference: rescaling, resizing,
            picking an input. `None` for none; of a KerasHub image task, its own
            `preprocessor` is then used. Of a text task, `fit()`, `evaluate()`
            and `predict()` apply the student's own `preprocessor` to text.
        teacher_preprocessing: the same before the teacher alone.
        teacher_dtype: `"bfloat16"` or `"float16"` to run the teacher in that
            precision; `None` for its own.
        tokens_per_chunk: int, or `None`. For language models, whose logits of
            all tokens do not fit into memory: the last layer of both models and
            the loss are applied to so many tokens at a time. Loss and gradients
            are the same. Both must be functional models that end in a `Dense`
            or a `ReversibleEmbedding`. Metrics are not available.
        on_policy: float in (0, 1], or `None`. For a student that is a
            `CausalLM` of KerasHub: the share of batches in which it continues
            the prompts itself, with its sampler, and the teacher scores what
            it wrote. The prompt is what comes before the first label that
            counts. The loss must not compare with labels.
        name: name of the model.

    Call arguments:
        inputs: what the student takes (before `student_preprocessing`).
        training: bool, passed to the student.

    Raises:
        TypeError: if the teacher is not callable, or the student is not a
            model.
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
        *,
        student: keras.Model,
        teacher: Any,
        augment: keras.layers.Layer | None = None,
        hints: Hint | list[Hint] | tuple[Hint, ...] = (),
        student_preprocessing: Any = None,
        teacher_preprocessing: Any = None,
        teacher_dtype: str | None = None,
        tokens_per_chunk: int | None = None,
        on_policy: float | None = None,
        name: str | None = None,
    ) -> None:
        _model_checks.check_roles(student, teacher)
        _warnings.own_steps(student)
        # The shared view must reach each model's own preprocessing unchanged,
        # so the Distiller itself casts nothing. Its policy is the student's:
        # Keras reads there whether the loss has to be scaled.
        super().__init__(
            name=name, dtype=_model_checks.loss_policy(student), autocast=False
        )
        self.student = student
        self.student_preprocessing = _model_checks.preprocessing(
            "student_preprocessing", student_preprocessing, student
        )
        self.teacher_preprocessing = _model_checks.preprocessing(
            "teacher_preprocessing", teacher_preprocessing, teacher
        )
        if augment is not None and not isinstance(augment, ConsistentAugment):
            augment = ConsistentAugment(augment)
        self.augment = augment
        self.teacher_dtype = teacher_dtype
        self.tokens_per_chunk = tokens_per_chunk
        self._chunks = token_chunks(student, tokens_per_chunk)
        self.on_policy = on_policy
        self._on_policy = on_policy_of(student, on_policy)
        self._features = HintFeatures(student, hints)
        self.hints = self._features.hints
        self._fitting = False
        self.teacher = teacher
        self.built = student.built and self._features.has_projectors

    @property
    def teacher(self) -> Any:
        """The teacher that was passed. Assign another one to change it."""
        return self._recording or self._live_teacher.given

    @teacher.setter
    def teacher(self, teacher: Any) -> None:
        recording = teacher if isinstance(teacher, RecordedTeacher) else None
        if recording is not None:
            _output_checks.check_replay(self, recording, self._chunks)
            teacher = recording.live_or_absent
        live = LiveTeacher(
            teacher, self.teacher_preprocessing, self.teacher_dtype
        )
        if self._chunks is not None:
            self._chunks.split_teacher(live, recording)
        _model_checks.check_no_shared_weights(self.student, live)
        self._features.find_in(live, self.student, can_change=not self.built)
        self._track_projectors()
        self._live_teacher = live
        self._recording = recording
        if self.compiled:
            _output_checks.check_models(
                self.student, live, recording, self._logs.objective
            )
            # The compiled steps hold the previous teacher. A callback may
            # assign one during `fit()`: the next step is made for it.
            if self.train_function is not None:
                self.make_train_function(force=True)
            self.test_function = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; only the teacher is not tracked.

        Keras and PyTorch track every model that is assigned to an attribute:
        the teacher would get optimizer slots and a place in checkpoints. No
        explicit method can prevent that, because both of them intercept the
        plain assignment `distiller.teacher = model`.
        """
        if name == "teacher":
            object.__setattr__(self, name, value)  # calls the setter above
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """Keras saves every model that it finds here, properties included."""
        return [name for name in super().__dir__() if name != "teacher"]

    def _track_projectors(self):
        """Keras tracks, trains and saves the layers in an attribute."""
        self.projectors = self._features.projectors

    @property
    def output_names(self) -> list[str]:
        """The names of the student's outputs, if it has names."""
        return self.student.output_names

    def call(self, inputs: Tensors, training: bool | None = None) -> Tensors:
        if isinstance(inputs, StepInputs):
            return self._features.run_student(
                self._run_student_in_step, inputs.view, training
            )
        return self._run(self.student, inputs, training)

    def _run_student_in_step(self, inputs, training=None):
        chunks = self._chunks
        run = self.student if chunks is None else chunks.hidden_states
        return self._run(run, inputs, training)

    def _run(self, model, inputs, training):
        if self.student_preprocessing is not None:
            inputs = self.student_preprocessing(inputs)
        return model(inputs, training=training)

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Print the student's summary, with the arguments of Keras."""
        return self.student.summary(*args, **kwargs)

    def _repr_html_(self) -> str:
        return html_card(self, self._logs.objective if self.compiled else None)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export the student, with the arguments of `keras.Model.export`.

        Raises:
            ValueError: if there is a `student_preprocessing`, which the file
                would leave out.
        """
        _model_checks.check_export(self.student_preprocessing)
        return self.student.export(*args, **kwargs)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        *,
        check_values: bool = True,
        log_schedules: bool = False,
        **kwargs: Any,
    ) -> None:
        """Configure the training; the arguments are those of `keras.Model`.

        Args:
            optimizer: as for `keras.Model.compile`.
            loss: `ClassicKD`, `FunctionMatching` or another
                `DistillationLoss`; for several outputs a list or dict of
                losses. Other Keras losses compare with the labels. `None`
                means `FunctionMatching()`.
            loss_weights: floats, schedules or variables in the structure of
                `loss`.
            metrics: `TeacherAgreement` and `TeacherDivergence` compare with the
                teacher, all other metrics with the labels. If the view mixes
                images, label metrics are computed in validation only.
            weighted_metrics: the same, with `sample_weight`.
            check_values: bool. Whether to raise an error that names the batch
                if the teacher or the loss returns NaN or infinity, if outputs
                are probabilities instead of logits or the reverse, or if labels
                are not classes.
            log_schedules: bool. Whether to log the current value of each
                schedule and variable among the numbers of the losses.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile` and
                `auto_scale_loss`, as for `keras.Model.compile`.

        Raises:
            RuntimeError: if it is called during `fit()`.
            ValueError: if the outputs of teacher and student do not fit each
                other, or contradict the loss's `from_logits`.
        """
        _model_checks.check_not_fitting(self._fitting)
        given = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "check_values": check_values,
            "log_schedules": log_schedules,
        }
        self._logs = make_logs(
            self.student,
            self._live_teacher,
            self._recording,
            self.hints,
            given,
            self._chunks,
        )
        count = len(getattr(self.student, "output_names", [""]))
        super().compile(
            optimizer=optimizer,
            loss=self._logs.objective,
            metrics=without_teacher_metrics(metrics, count),
            weighted_metrics=without_teacher_metrics(weighted_metrics, count),
            **kwargs,
        )
        self._compile_arguments = _saving.CompileArguments(
            {"optimizer": self.optimizer, **given, **kwargs}
        )

    @functools.wraps(keras.Model.fit)
    def fit(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        _backend.check_processes(self)
        arguments = fit_arguments(self, self._recording, x, y, args, kwargs)
        if self.compiled:
            self._logs.steps_taken = 0
            set_modes(arguments.get("callbacks"), self._logs.direction_of)
        self._fitting = True
        try:
            history = super().fit(**arguments)
        finally:
            self._fitting = False
        _processes.end(self)
        if history.epoch and not self._logs.steps_taken:
            raise ValueError(_backend.EMPTY)
        return self._checked(history)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        arguments = evaluate_arguments(self, x, y, args, kwargs)
        with _backend.weights_kept(self):
            logs = super().evaluate(**arguments)
        _processes.end(self)
        return self._checked(logs)

    @functools.wraps(keras.Model.predict)
    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        tokens, _, _ = tokenized(self.student, x, None, None)
        return super().predict(tokens, *args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return self._checked(super().train_on_batch(*args, **kwargs))

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return self._checked(super().test_on_batch(*args, **kwargs))

    def _checked(self, result):
        self._logs.raise_pending()
        return result

    def train_step(self, *arguments: Any) -> Any:
        return self._step(super().train_step, arguments, training=True)

    def test_step(self, *arguments: Any) -> Any:
        return self._step(super().test_step, arguments, training=False)

    def _step(self, step, arguments, training):
        return _backend.run_step(
            self,
            self._logs,
            step,
            functools.partial(self._annotate, training=training),
            functools.partial(
                _compiled_steps.variables_read,
                self._live_teacher,
                self._recording,
                self._logs.objective,
                None if training else self.optimizer,
            ),
            arguments,
        )

    def _annotate(self, data, training):
        def run_teacher(view, recorded):
            if self._recording is not None and training:
                replayed = self._recording, recorded, self._chunks is None
                return [teacher_outputs(*replayed)], []
            return self._features.run_teacher(self._live_teacher, view)

        return annotate(
            data,
            self.augment if training else None,
            run_teacher,
            self._logs,
            lambda: self.optimizer.iterations,
        )

    def compute_loss(
        self,
        x: Tensors = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensors = None,
        training: bool = True,
    ) -> Tensor:
        if y.is_symbolic:
            return ops.zeros(())  # Keras builds its state; ours has none.
        outputs, features = outputs_and_features(y_pred)
        y_pred = Leaf((outputs, self._features.project(features)))
        y = Leaf(y._replace(training=training))
        return super().compute_loss(x, y, y_pred, None, training)

    def compute_metrics(
        self, x: Tensors, y: Any, y_pred: Any, sample_weight: Tensors = None
    ) -> dict[str, Tensor]:
        outputs, _ = outputs_and_features(y_pred)
        if y.is_symbolic:
            self._logs.build(outputs)
        else:
            self._logs.update(y, outputs)
        labels = y.followed_labels()
        if labels is None:
            logs = self._logs.results(
                self.metrics, without=compiled_label_metrics(self)
            )
        else:
            weights = y.with_followed_weights().weights
            logs = super().compute_metrics(x, labels, outputs, weights)
        return self._logs.add_counts(logs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        metrics = super().metrics
        return metrics + self._logs.metrics if self.compiled else metrics

    @property
    def metrics_names(self) -> list[str]:
        """The names of what `evaluate()` returns."""
        return list(self.get_metrics_result())

    def get_metrics_result(self) -> dict[str, Tensor]:
        label_metrics = compiled_label_metrics(self)
        if label_metrics is not None and label_metrics.built:
            label_metrics = None  # They have values.
        return self._logs.results(self.metrics, without=label_metrics)

    def reset_metrics(self) -> None:
        if self.compiled:
            self._logs.start_epoch()
        super().reset_metrics()

    def make_train_function(self, force: bool = False) -> None:
        self._make("train_function", super().make_train_function, force)

    def make_test_function(self, force: bool = False) -> None:
        self._make("test_function", super().make_test_function, force)

    def _make(self, name, make, force):
        existing = getattr(self, name)
        make(force)
        if getattr(self, name) is not existing:
            teachers = self._live_teacher, self._recording
            _compiled_steps.wrap(
                self, name, *teachers, self._logs, self._on_policy
            )

    def _symbolic_build(self, iterator=None, data_batch=None):
        if data_batch is None:
            data_batch = _backend.first_batch(iterator)
        view, teacher_view, targets = _compiled_steps.symbolic_batch(
            data_batch, self.augment, compiled_label_metrics(self) is not None
        )
        self._features.build(
            self._live_teacher,
            self._run_student_in_step,
            (teacher_view, view),
            can_change=not self.built,
        )
        self._track_projectors()
        super()._symbolic_build(data_batch=(view, targets))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """TensorFlow only: build early, so that callbacks find weights."""
        if not self.built or self._distribute_strategy is not None:
            with self.distribute_strategy.scope():
                self._symbolic_build(iterator, data_batch)

    def get_config(self) -> dict[str, Any]:
        return _saving.config_of(self)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict | None = None
    ) -> "Distiller":
        arguments, projectors = _saving.parts_of(config, custom_objects)
        distiller = cls(**arguments)
        distiller._features.projectors = projectors
        distiller._track_projectors()
        return distiller

    def get_compile_config(self) -> dict[str, Any]:
        return self._compile_arguments.config() if self.compiled else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        _compiled_steps.build_optimizer(self)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        _saving.save_random_states(self, store)

    def load_own_variables(self, store: Any) -> None:
        _saving.load_random_states(self, store)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        # An optimizer without slots would leave those of the file behind.
        if self.compiled:
            _compiled_steps.build_optimizer(self)
        super().load_weights(*args, **kwargs)
