"""HintTerms: the hints of a Distiller, as terms of what is minimised."""

import warnings

import keras
from keras import ops
from keras import tree

from keras_distill import _schedules
from keras_distill._keras_internals import get_keras_mask
from keras_distill.losses import _weighting
from keras_distill.views import _images


class HintTerms:
    """The weighted sum of the losses of all hints.

    Args:
        hints: list of `Hint`.
    """

    def __init__(self, hints):
        self.hints = hints
        self.trackers = [keras.metrics.Mean(name="hint_loss")] if hints else []
        self._reduction = keras.losses.MeanSquaredError()  # the default one

    def __len__(self):
        return len(self.hints)

    def scheduled_values(self, step):
        """Return the value of each scheduled weight, by its log name."""
        return {
            f"hint_{index}_weight": value
            for index, hint in enumerate(self.hints)
            for value in hint.scheduled_values(step).values()
        }

    def value(self, targets, features):
        """Return the weighted sum of all hint losses, and log it.

        Args:
            targets: the `Targets` of the batch.
            features: list of the student's features, projected.
        """
        if not self.hints:
            return 0.0
        weights = _weights_of_features(targets.weights)
        total = 0.0
        for hint, teacher, student in zip(
            self.hints, targets.features, features, strict=True
        ):
            total = total + _schedules.value_at(
                hint.weight, targets.moment.step
            ) * self._value(hint, teacher, student, weights)
        _weighting.log(self.trackers[0], total, features[0])
        return total

    def _value(self, hint, teacher, student, weights):
        places = tuple(student.shape)[:-1]
        if hint.relational:
            return self._relational_value(hint, teacher, student, weights)
        if weights is not None:
            weights = _at_places(weights, places)
        values = hint.values
        if weights is None and get_keras_mask(student) is None:
            # The mean of the means of samples: XLA fuses it better.
            def values(teacher, student):
                return _weighting.mean_to_rank(hint.values(teacher, student), 1)

        return _weighting.weighted_value(
            values, self._reduction, teacher, student, weights
        )

    def _relational_value(self, hint, teacher, student, weights):
        """Places of weight 0 take no part; a sample counts by its mean."""
        places = tuple(student.shape)[:-1]
        per_place = None
        if weights is not None:
            weights = _at_places(weights, places)
        counts = _weighting.per_place(weights, get_keras_mask(student), places)
        if counts is not None:
            per_place = ops.broadcast_to(counts, ops.shape(student)[:-1])
        if weights is not None:
            axes = tuple(range(1, len(weights.shape)))
            weights = ops.mean(weights, axis=axes) if axes else weights
        values = hint.values(teacher, student, per_place)
        return _weighting.weighted_value(
            lambda y_true, y_pred: values,
            self._reduction,
            values,
            values,
            weights,
        )


def _weights_of_features(weights):
    """Return the weights that count for inner layers, or `None`."""
    leaves = [leaf for leaf in tree.flatten(weights) if leaf is not None]
    if len(leaves) > 1:
        warnings.warn(
            "The data has weights for several outputs, and an inner layer "
            "belongs to none of them: hints are not weighed. Received: weights "
            f"of shapes {[tuple(leaf.shape) for leaf in leaves]}. Give one "
            "array of weights for all outputs to weigh the hints.",
            stacklevel=2,
        )
        return None
    return leaves[0] if leaves else None


def _at_places(weights, places):
    """Return weights `(batch, ...)` for the places of a feature.

    Weights per pixel are averaged over the area of each place. A feature of
    fewer axes, such as a pooled one, gets the mean over the axes it lacks.

    Raises:
        ValueError: if the places can't be matched.
    """
    weights = ops.convert_to_tensor(weights)
    given = tuple(weights.shape)
    if len(given) == len(places) + 1 and given[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    extra = tuple(range(len(places), len(weights.shape)))
    if extra:
        weights = ops.mean(ops.cast(weights, "float32"), axis=extra)
    for axis in range(1, len(weights.shape)):
        size, wanted = weights.shape[axis], places[axis]
        if size in (1, wanted) or None in (size, wanted):
            continue
        if len(places) < 3:
            raise ValueError(
                "The weights of a hint must have one value per sample or per "
                "place of the student's feature, and the places of a sequence "
                f"can't be resampled. Received: weights of shape {given} for "
                f"places {places}."
            )
        weights = _images.resize_axis(
            ops.cast(weights, "float32"), axis, wanted
        )
    return weights
