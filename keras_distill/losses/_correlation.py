"""The distances by correlation, and z-scores, as pure functions on logits.

Logits have the shape `(..., classes)`. Constant values have no correlation;
what they get instead is said in `DIST`.
"""

from keras import ops

from keras_distill.losses._divergence import below_peak

# Stands for infinity, whose products with 0 are no numbers.
_LARGE = 1e30

# Values whose standard deviation is below this count as constant.
_CONSTANT = 1e-6


def standardize(logits):
    """Return the z-scores of the logits over the classes.

    The maximum is subtracted first, so that the mean of large logits costs no
    digits. Constant logits give zeros.
    """
    return _z_scores(below_peak(logits), axis=-1)


def inter_class_distance(teacher_logits, student_logits, temperature):
    """Return 1 - correlation over the classes, one value per distribution."""
    return _correlation_distance(
        below_peak(teacher_logits) / temperature,
        below_peak(student_logits) / temperature,
        axis=-1,
    )


def intra_class_distance(
    teacher_logits, student_logits, temperature, weights=None
):
    """Return 1 - correlation over all distributions, its mean over classes.

    It is one number for everything given, of shape `()`.

    Args:
        teacher_logits, student_logits: `(..., classes)`.
        temperature: float above 0.
        weights: `None`, or how much each distribution counts, `(...)`. Those
            of weight 0 are left out, whatever they hold.
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

    Again the differences come first, now those between samples: a class with
    the same tiny probability in all of them then is constant to the last digit.
    Rows of weight 0 get the smallest number, so that they are no peak.
    """
    below = below_peak(ops.reshape(logits, (-1, logits.shape[-1])))
    counts = ops.ones_like(below, "bool") if weights is None else weights > 0
    below = ops.where(counts, below, 0.0)
    exps = ops.exp(below / temperature)
    log_total = ops.log(ops.sum(exps, axis=-1, keepdims=True))
    highest = ops.max(ops.where(counts, below, -_LARGE), axis=0, keepdims=True)
    shifted = ops.subtract(below, ops.stop_gradient(highest))
    logs = shifted / temperature - log_total
    return ops.where(counts, logs, -_LARGE)


def _correlation_distance(teacher_logs, student_logs, axis, weights=None):
    """Return 1 - correlation of `exp(teacher_logs)` and `exp(student_logs)`.

    It is half the mean squared difference of the z-scores: the same number,
    but it keeps its digits where the two are close, and is never below 0.
    """
    difference = ops.subtract(
        _z_scores(_exp_below_peak(teacher_logs, axis), axis, weights),
        _z_scores(_exp_below_peak(student_logs, axis), axis, weights),
    )
    return 0.5 * ops.squeeze(
        _mean(ops.square(difference), axis, weights), axis=axis
    )


def _exp_below_peak(logs, axis):
    """Return `exp(logs)`, scaled and shifted to have its maximum at 0.

    A correlation doesn't see scale and shift. This way no column of small
    probabilities underflows, and close ones keep the digits of their distance.
    """
    return ops.expm1(below_peak(logs, axis))


def _mean(values, axis, weights=None):
    """Return the mean along an axis, weighed or not; the axis is kept."""
    if weights is None:
        return ops.mean(values, axis=axis, keepdims=True)
    total = ops.sum(weights, axis=axis, keepdims=True)
    return ops.sum(weights * values, axis=axis, keepdims=True) / ops.where(
        total > 0, total, 1.0
    )


def _z_scores(values, axis, weights=None):
    """Return the values less their mean, over their standard deviation.

    Constant values are not divided: they give zeros, and a gradient as of
    values of standard deviation 1. A small number added to the deviation would
    give them a gradient of a million, and a student with a last layer of zeros
    would be thrown far off by its first step.
    """
    centred = values - _mean(values, axis, weights)
    variance = _mean(ops.square(centred), axis, weights)
    is_constant = variance < _CONSTANT**2
    # The root is taken of what is not 0, for the sake of its gradient.
    return centred / ops.sqrt(ops.where(is_constant, 1.0, variance))
