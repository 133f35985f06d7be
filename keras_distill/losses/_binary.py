"""The mathematics of independent sigmoids, as pure functions on logits.

Everything goes through the logarithm of the sigmoid, of `x` and of `-x`: both
tails keep their digits, and nothing is clipped.
"""

from keras import ops

# What stands for a probability of 0. The gradient of its logarithm, 1e30, times
# a temperature and a weight is still finite.
_LEAST = 1e-30

# What stands for 1 less a probability that was rounded to 1: half the distance
# of float32 numbers just below 1.
_HALF_STEP = 2.0**-25


def as_logits(outputs, from_logits):
    """Return float32 logits for logits or probabilities."""
    outputs = ops.cast(outputs, "float32")
    if from_logits:
        return outputs
    log_odds_for = _log(outputs, _LEAST)
    log_odds_against = _log(ops.subtract(1.0, outputs), _HALF_STEP)
    return log_odds_for - log_odds_against


def _log(probabilities, least):
    # `where` and not `maximum`: no gradient flows where it is clipped.
    return ops.log(ops.where(probabilities < least, least, probabilities))


def cross_entropy(labels, student_logits):
    """Return `-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))`, elementwise."""
    labels = ops.cast(labels, "float32")
    return -(
        labels * ops.log_sigmoid(student_logits)
        + (1.0 - labels) * ops.log_sigmoid(-student_logits)
    )


def soft_cross_entropy(teacher_logits, student_logits, temperature):
    """Return the binary cross-entropy against soft targets, elementwise."""
    teacher = teacher_logits / temperature
    student = student_logits / temperature
    # 1 - p is the sigmoid of -t: the difference would lose its digits.
    return -(
        ops.sigmoid(teacher) * ops.log_sigmoid(student)
        + ops.sigmoid(-teacher) * ops.log_sigmoid(-student)
    )


def kl_divergence(teacher_logits, student_logits):
    """Return `KL(sigmoid(t) || sigmoid(s))`, elementwise."""
    return sum(
        ops.sigmoid(teacher)
        * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
        for teacher, student in (
            (teacher_logits, student_logits),
            (-teacher_logits, -student_logits),
        )
    )


def mean_over_labels(values):
    """Return the mean over the last axis, and `(batch,)` as it is."""
    return ops.mean(values, axis=-1) if len(values.shape) > 1 else values
