"""Correlation distances and z-scores, as pure functions on logits.

Logits have the shape `(..., classes)`. The correlation of constant values is
not defined; the docstring of `DIST` describes the values used for them.
"""

from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._divergence import minus_max

# Used in place of infinity: infinity times 0 is NaN.
_LARGE = 1e30

# Values whose standard deviation is below this count as constant.
_CONSTANT = 1e-6


def standardize(logits: Tensor) -> Tensor:
    """Return the z-scores of the logits over the classes.

    The maximum is subtracted first, so that the mean of large logits does not
    lose digits. Constant logits give zeros.
    """
    return _z_scores(minus_max(logits), axis=-1)


def inter_class_distance(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return 1 - correlation over the classes, one value per distribution."""
    return _correlation_distance(
        minus_max(teacher_logits) / temperature,
        minus_max(student_logits) / temperature,
        axis=-1,
    )


def intra_class_distance(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return 1 - correlation over all distributions, averaged over classes.

    Args:
        teacher_logits: `(..., classes)`.
        student_logits: `(..., classes)`.
        temperature: float above 0.
        weights: `None`, or the weight of each distribution, `(...)`.
            Distributions of weight 0 are left out and may contain any values.

    Returns:
        A scalar.
    """
    if weights is not None:
        weights = ops.cast(ops.reshape(weights, (-1, 1)), "float32")
    distances = _correlation_distance(
        _log_columns(teacher_logits, temperature, weights),
        _log_columns(student_logits, temperature, weights),
        axis=0,
        weights=weights,
    )  # (classes,)
    return ops.mean(distances)


def _log_columns(logits, temperature, weights=None):
    """Return the log-probabilities `(batch, classes)`, shifted per class.

    The difference between samples is computed first, before the division: a
    class that has the same small probability in all samples is then exactly
    constant. Rows of weight 0 get the smallest number, so that they are never
    the maximum.
    """
    rows = minus_max(ops.reshape(logits, (-1, logits.shape[-1])))
    counts = ops.ones_like(rows, "bool") if weights is None else weights > 0
    rows = ops.where(counts, rows, 0.0)
    exps = ops.exp(rows / temperature)
    log_total = ops.log(ops.sum(exps, axis=-1, keepdims=True))
    highest = ops.max(ops.where(counts, rows, -_LARGE), axis=0, keepdims=True)
    shifted = ops.subtract(rows, ops.stop_gradient(highest))
    logs = shifted / temperature - log_total
    return ops.where(counts, logs, -_LARGE)


def _correlation_distance(teacher_logs, student_logs, axis, weights=None):
    """Return 1 - correlation of `exp(teacher_logs)` and `exp(student_logs)`.

    It is computed as half the mean squared difference of the z-scores. This is
    the same number, but it keeps its digits where the two are close, and it is
    never negative.
    """
    difference = ops.subtract(
        _z_scores(_exp_minus_max(teacher_logs, axis), axis, weights),
        _z_scores(_exp_minus_max(student_logs, axis), axis, weights),
    )
    return 0.5 * ops.squeeze(
        _mean(ops.square(difference), axis, weights), axis=axis
    )


def _exp_minus_max(logs, axis):
    """Return `exp(logs)`, scaled and shifted so that its maximum is 0.

    A correlation does not depend on scale and shift. With them, columns of
    small probabilities do not underflow, and close values keep the digits of
    their difference.
    """
    return ops.expm1(minus_max(logs, axis))


def _mean(values, axis, weights=None):
    """Return the mean along an axis, with optional weights; keep the axis."""
    if weights is None:
        return ops.mean(values, axis=axis, keepdims=True)
    total = ops.sum(weights, axis=axis, keepdims=True)
    return ops.sum(weights * values, axis=axis, keepdims=True) / ops.where(
        total > 0, total, 1.0
    )


def _z_scores(values, axis, weights=None):
    """Return the values minus their mean, divided by their standard deviation.

    Constant values are not divided. They give zeros, and the gradient of values
    with a standard deviation of 1. Adding a small number to the deviation
    instead would give gradients of about a million, and the first step of a
    student whose last layer is zero would be far too large.
    """
    centred = values - _mean(values, axis, weights)
    variance = _mean(ops.square(centred), axis, weights)
    is_constant = variance < _CONSTANT**2
    # The gradient of the root at 0 is infinite, so its input is never 0.
    return centred / ops.sqrt(ops.where(is_constant, 1.0, variance))
