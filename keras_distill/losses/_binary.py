"""The mathematics of independent sigmoids, as pure functions on logits.

All functions use the logarithm of the sigmoid, of `x` and of `-x`. So small
probabilities and small complements both keep their digits, and nothing is
clipped.
"""

from keras import ops

from keras_distill._typing import Tensor

# Replaces smaller probabilities. The gradient of its logarithm, 1e30, times a
# temperature and a weight is still finite.
_MIN_PROBABILITY = 1e-30

# Replaces `1 - p` of a probability that was rounded to 1: half the distance
# between float32 numbers just below 1.
_MIN_COMPLEMENT = 2.0**-25


def as_logits(outputs: Tensor, from_logits: bool) -> Tensor:
    """Return float32 logits for logits or probabilities."""
    outputs = ops.cast(outputs, "float32")
    if from_logits:
        return outputs
    log_odds_for = _log(outputs, _MIN_PROBABILITY)
    log_odds_against = _log(ops.subtract(1.0, outputs), _MIN_COMPLEMENT)
    return log_odds_for - log_odds_against


def _log(probabilities, minimum):
    # `where` and not `maximum`: clipped values get no gradient.
    return ops.log(ops.where(probabilities < minimum, minimum, probabilities))


def cross_entropy(labels: Tensor, student_logits: Tensor) -> Tensor:
    """Return `-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))`, elementwise."""
    labels = ops.cast(labels, "float32")
    return -(
        labels * ops.log_sigmoid(student_logits)
        + (1.0 - labels) * ops.log_sigmoid(-student_logits)
    )


def soft_cross_entropy(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return the binary cross-entropy with soft targets, elementwise."""
    teacher = teacher_logits / temperature
    student = student_logits / temperature
    # 1 - p is computed as the sigmoid of -t. The difference would lose digits.
    return -(
        ops.sigmoid(teacher) * ops.log_sigmoid(student)
        + ops.sigmoid(-teacher) * ops.log_sigmoid(-student)
    )


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return `KL(sigmoid(t) || sigmoid(s))`, elementwise."""
    return sum(
        ops.sigmoid(teacher)
        * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
        for teacher, student in (
            (teacher_logits, student_logits),
            (-teacher_logits, -student_logits),
        )
    )


def mean_over_labels(values: Tensor) -> Tensor:
    """Return the mean over the last axis, and `(batch,)` unchanged."""
    return ops.mean(values, axis=-1) if len(values.shape) > 1 else values
