"""The mathematics of distillation, as pure functions on logits.

Every function takes logits of shape `(..., classes)` and returns one value per
distribution, of shape `(...)`. With `p = softmax(t / T)` for the teacher's
logits `t` and `q = softmax(s / T)` for the student's logits `s`:

    soft_cross_entropy = -sum_i p_i log q_i
    kl_divergence      =  sum_i p_i (log p_i - log q_i)

Both work on log-softmax and never on `log(softmax(x))`: a probability that
underflows would be clipped, and a confidently wrong student would get no
gradient at all. The factor `T**2` belongs to the losses, not here.
"""

from keras import ops

# The smallest normal float32: its logarithm is -87.3, so that the logarithm of
# a probability that underflowed to 0 stays finite.
_TINY = 1.1754944e-38


def log_soften(logits, temperature):
    """Return `log softmax(logits / temperature)`, shape `(..., classes)`.

    The maximum is subtracted before the division, not after it: the difference
    of two close logits is exact in floating point, their quotients are not. At
    logits of 1e4 and a temperature of 0.1 this is the difference between seven
    correct digits and two.
    """
    peak = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    scaled = ops.subtract(logits, peak) / temperature
    log_total = ops.log(ops.sum(ops.exp(scaled), axis=-1, keepdims=True))
    return scaled - log_total


def soft_cross_entropy(teacher_logits, student_logits, temperature):
    """Return the cross-entropy of the student against soft targets."""
    p = ops.exp(log_soften(teacher_logits, temperature))
    student_log_probs = log_soften(student_logits, temperature)
    return -ops.sum(p * student_log_probs, axis=-1)


def kl_divergence(teacher_logits, student_logits, temperature):
    """Return `KL(p || q)` of the softened teacher and student."""
    teacher_log_probs = log_soften(teacher_logits, temperature)
    student_log_probs = log_soften(student_logits, temperature)
    p = ops.exp(teacher_log_probs)
    return ops.sum(p * (teacher_log_probs - student_log_probs), axis=-1)


def as_logits(outputs, from_logits):
    """Return float32 logits for logits or probabilities.

    The logarithm of a probability is a logit: `softmax(log p) = p`.
    """
    outputs = ops.cast(outputs, "float32")
    if from_logits:
        return outputs
    return ops.log(ops.maximum(outputs, _TINY))


def mean_of_teachers(outputs, from_logits):
    """Average the probabilities of several teachers, given and returned alike.

    Cross-entropy is linear in its targets, so the average of the probabilities
    teaches what the average of the teachers' losses would teach.

    Args:
        outputs: list of tensors `(..., classes)`, one per teacher.
        from_logits: whether `outputs` are logits or probabilities.
    """
    if not from_logits:
        return sum(ops.cast(o, "float32") for o in outputs) / len(outputs)
    log_probs = ops.stack(
        [log_soften(as_logits(o, True), 1.0) for o in outputs], axis=0
    )  # (teachers, ..., classes)
    count = ops.log(ops.cast(len(outputs), "float32"))
    return ops.logsumexp(log_probs, axis=0) - count
