"""The terms of the objective: each loss of each output, and each hint.

    objective = sum over terms of weight * value

A term multiplies its value by its weight itself, which may be a schedule.
"""

import keras
from keras import ops

from keras_distill import _schedules
from keras_distill._keras_internals import get_keras_mask
from keras_distill.distiller import _hint_weights
from keras_distill.losses import _label_loss
from keras_distill.losses import _shapes
from keras_distill.losses import _value_checks
from keras_distill.losses import _weighting
from keras_distill.losses._combined_loss import target_of
from keras_distill.losses._distillation_loss import DistillationLoss
from keras_distill.losses._most_probable import MostProbable
from keras_distill.teachers import _average


class OutputTerm:
    """One loss of one output of the student.

    Args:
        loss: a Keras loss.
        weights: numbers, schedules or variables, whose product is the weight.
        prefix: stands before the names of the logs.
    """

    def __init__(self, loss, weights, prefix):
        self.loss, self.weights = loss, weights
        self.prefix = f"{prefix}_" if prefix else ""
        self.compares_with_teacher = isinstance(loss, DistillationLoss)
        names = list(loss.parts()) if self.compares_with_teacher else ["loss"]
        self.trackers = {
            name: keras.metrics.Mean(name=f"{self.prefix}{name}")
            for name in names
        }

    @property
    def uses_teacher(self):
        return self.compares_with_teacher and self.loss.uses_teacher

    @property
    def uses_labels(self):
        return not self.compares_with_teacher or self.loss.uses_labels

    @property
    def predicts(self):
        """What the loss takes outputs for, `None` for a plain Keras loss."""
        return self.loss.predicts if self.compares_with_teacher else None

    @property
    def has_schedules(self):
        return any(map(_schedules.is_schedule, self.weights)) or (
            self.compares_with_teacher and self.loss.has_schedules
        )

    @property
    def variables(self):
        """The variables among the weights."""
        return [w for w in self.weights if isinstance(w, keras.Variable)]

    def scheduled_values(self, moment):
        """Return the value of every schedule at a moment, by its log name."""
        values = {}
        if self.variables or any(map(_schedules.is_schedule, self.weights)):
            values["weight"] = _schedules.product_at(self.weights, moment)
        if self.compares_with_teacher:
            values.update(self.loss.scheduled_values(moment.step))
        return {f"{self.prefix}{name}": value for name, value in values.items()}

    def parts(self, moment):
        """Return `{log name: (weight, function)}` at the `Moment` of a step."""
        if not self.compares_with_teacher:
            return {"loss": (1.0, self.loss.call)}
        return self.loss.at(moment.step).parts()

    def value(self, targets, moment, values=None):
        """Return the weighted value of this term, and log its parts.

        Args:
            targets: the `OutputTargets` of the output.
            moment: the `Moment` of the step, for schedules.
            values: `{log name: values per place}`, if they are known already.
        """
        target = {}
        if values is None:
            target = self._as_loss_reads(self.target(targets), targets.output)
        total = 0.0
        for name, (weight, function) in self.parts(moment).items():
            if values is not None:

                def function(y_true, y_pred, name=name):
                    return values[name]

            value = _weighting.weighted_value(
                function, self.loss, target, targets.output, targets.weights
            )
            _weighting.log(self.trackers[name], value, targets.output)
            total = total + _schedules.value_at(weight, moment.step) * value
        return total * _schedules.product_at(self.weights, moment)

    def values(self, target, output, moment):
        """Return the weight and the values per place of each part.

        Args:
            target: what `target` returned.
            output: the student's output.
            moment: the `Moment` of the step.
        """
        y_true, y_pred = _weighting.converted(
            self.loss, (self._as_loss_reads(target, output), output)
        )
        product = _schedules.product_at(self.weights, moment)
        return [
            (
                product * _schedules.value_at(weight, moment.step),
                ops.cast(function(y_true, y_pred), "float32"),
            )
            for weight, function in self.parts(moment).values()
        ]

    def target(self, targets):
        """Return the `y_true` of a `DistillationLoss`.

        Of a recording with `top_k`, the teacher's output is a `MostProbable`.
        """
        target = {}
        if self.uses_labels:
            labels = targets.labels(self._num_classes(targets))
            if labels is not None:
                target["labels"] = labels
                if targets.moves_pixels and self._compares_values:
                    _value_checks.warn_of_coordinates(labels, self.loss)
            elif targets.labels_of_others:
                raise ValueError(
                    "The data has labels, but not for this output. Received: "
                    f"labels for {targets.labels_of_others}, and the output "
                    f"{'/'.join(map(str, targets.path))!r}, whose loss "
                    f"{self.loss.name!r} compares with labels. Add its labels "
                    "to the data, or set its loss to `None`."
                )
        if self.compares_with_teacher:
            target["teacher"] = self._teacher_output(targets)
            weights = targets.place_weights
            if weights is not None:
                target["sample_weight"] = weights
        return target

    @property
    def _compares_values(self):
        if self.compares_with_teacher:
            return self.predicts == "values"
        return "crossentropy" not in self.loss.name

    def _teacher_output(self, targets):
        predicts, from_logits = self.loss.predicts, self.loss.from_logits
        teacher = targets.teacher(
            lambda outputs: _average.average(outputs, predicts, from_logits)
        )
        if predicts in ("classes", "labels"):
            _check_dtype("teacher", teacher)
            _check_dtype("student", targets.output)
        return teacher

    def _as_loss_reads(self, target, output):
        teacher = target.get("teacher")
        if isinstance(teacher, MostProbable):
            _shapes.check_comparable(self.predicts, teacher.shape, output.shape)
            reads = self.loss.reads_most_probable
            whole = teacher.fields if reads else teacher.dense()
            target = {**target, "teacher": whole}
        return target_of(self.loss, target)

    def _num_classes(self, targets):
        """Return the number of classes if labels are mixed class indices."""
        if not targets.mixes_labels or targets.raw_labels is None:
            return None
        compared = getattr(self.loss, "label_loss", self.loss)
        if compared is not None and _label_loss.is_sparse(compared):
            raise ValueError(
                "This view mixes images, so labels are mixed as one-hot "
                "vectors, but the loss takes class indices. Received: "
                f"{compared!r}. Use `label_loss=None`, or a loss for one-hot "
                "labels such as keras.losses.CategoricalCrossentropy."
            )
        if self.predicts not in ("classes", None):
            return None
        labels, output = targets.raw_labels.shape, targets.output.shape
        # Before a crop, an image has another height and width: only the rank
        # and the axes after the places say whether labels are class indices.
        places = min(len(labels), len(output) - 1)
        labels = keras.KerasTensor((*output[:places], *labels[places:]))
        kind = _label_loss.as_one_hot_or_sparse(labels, output)
        return output[-1] if kind == "sparse" and output[-1] > 1 else None


def _check_dtype(role, outputs):
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    if "float" not in dtype:
        raise TypeError(
            f"A {role} must return logits or probabilities. Received: outputs "
            f"of dtype '{dtype}', which are decisions. Return the logits that "
            "they were decided from. To train with a teacher's decisions, pass "
            "them as labels `y` to ordinary training."
        )


class HintTerm:
    """The loss of one hint.

    Args:
        hint: a `Hint`.
        index: its position among the hints, for the log of its schedule.
    """

    def __init__(self, hint, index):
        self.hint, self.index = hint, index
        # Hints are reduced like a Keras loss with the default reduction.
        self._reduction = keras.losses.MeanSquaredError()

    @property
    def has_schedules(self):
        return self.hint.has_schedules

    def scheduled_values(self, moment):
        """Return the value of a scheduled weight, by its log name."""
        values = self.hint.scheduled_values(moment.step)
        return {f"hint_{self.index}_weight": v for v in values.values()}

    def value(self, teacher, student, weights, moment):
        """Return the weighted value of this hint.

        Args:
            teacher: feature `(batch, places..., width)` of the teacher.
            student: the projected feature of the student.
            weights: sample weights of the batch, or `None`.
            moment: the `Moment` of the step.
        """
        if weights is not None:
            weights = _hint_weights.at_places(weights, student.shape[:-1])
        compare = self._compare_relations
        if not self.hint.relational:
            compare = self._compare_places
        weight = _schedules.value_at(self.hint.weight, moment.step)
        return weight * compare(teacher, student, weights)

    def _compare_places(self, teacher, student, weights):
        values = self.hint.values
        if weights is None and get_keras_mask(student) is None:
            # The mean of the means of samples: XLA fuses it better.
            def values(teacher, student):
                values = self.hint.values(teacher, student)
                return _weighting.mean_to_rank(values, 1)

        return _weighting.weighted_value(
            values, self._reduction, teacher, student, weights
        )

    def _compare_relations(self, teacher, student, weights):
        """Leave out places of weight 0, and weight each sample by its mean."""
        values = self.hint.values(
            teacher, student, _hint_weights.per_place(weights, student)
        )
        return _weighting.weighted_value(
            lambda y_true, y_pred: values,
            self._reduction,
            values,
            values,
            _hint_weights.per_sample(weights),
        )
