"""The mathematics of distillation, as pure functions on logits.

Divergences take logits of shape `(..., classes)` and return one value per
distribution, of shape `(...)`. With `p = softmax(t / T)` for the teacher's
logits `t` and `q = softmax(s / T)` for the student's logits `s`:

    soft_cross_entropy = -sum_i p_i log q_i
    kl_divergence      =  sum_i p_i (log p_i - log q_i)

The other functions are the reverse KL divergence, the generalized
Jensen-Shannon divergence, and the two parts of the KL divergence: target class
and other classes.

All functions use log-softmax and never `log(softmax(x))`. In the latter, a
probability that underflows would be clipped, and a student that is confident
and wrong would get no gradient. The losses multiply by the factor `T**2`.
"""

import math
from collections.abc import Sequence

from keras import ops

from keras_distill._typing import Tensor

# The smallest normal float32. Its logarithm is -87.3, so the logarithm of a
# probability that underflowed to 0 is finite.
_TINY = 1.1754944e-38


def log_soften(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return `log softmax(logits / temperature)`, shape `(..., classes)`.

    The maximum is subtracted before the division: the difference of two close
    logits is exact in floating point, their quotients are not. With logits of
    1e4 and a temperature of 0.1, the result has seven correct digits instead of
    two.
    """
    scaled = minus_max(logits) / temperature
    log_total = ops.log(ops.sum(ops.exp(scaled), axis=-1, keepdims=True))
    return scaled - log_total


def soft_cross_entropy(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return the cross-entropy of the student with soft targets."""
    p = ops.exp(log_soften(teacher_logits, temperature))
    student_log_probs = log_soften(student_logits, temperature)
    return -ops.sum(p * student_log_probs, axis=-1)


def kl_divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return `KL(p || q)` of the softened teacher and student."""
    teacher_log_probs = log_soften(teacher_logits, temperature)
    student_log_probs = log_soften(student_logits, temperature)
    p = ops.exp(teacher_log_probs)
    return ops.sum(p * (teacher_log_probs - student_log_probs), axis=-1)


def reverse_kl_divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return `KL(q || p)` of the softened student and teacher."""
    student_log_probs = log_soften(student_logits, temperature)
    # The teacher's logit of the student's most likely class is subtracted. The
    # logits of classes that are likely for the student are then near 0 and keep
    # their digits. The rest of log p is the same for all classes, so it does
    # not change the gradient.
    most_likely = ops.equal(
        ops.argmax(student_logits, axis=-1, keepdims=True),
        ops.arange(student_logits.shape[-1]),
    )
    reference = ops.sum(
        ops.where(most_likely, teacher_logits, 0.0), axis=-1, keepdims=True
    )
    scaled = ops.subtract(teacher_logits, reference) / temperature
    log_total = ops.logsumexp(scaled, axis=-1)
    q = ops.exp(student_log_probs)
    return log_total + ops.sum(q * (student_log_probs - scaled), axis=-1)


def jensen_shannon_divergence(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor,
    beta: float,
) -> Tensor:
    """Return the generalized Jensen-Shannon divergence.

    With the mixture `m = beta p + (1 - beta) q`, it is
    `beta KL(p || m) + (1 - beta) KL(q || m)`.

    Args:
        teacher_logits: `(..., classes)`.
        student_logits: `(..., classes)`.
        temperature: float above 0.
        beta: float between 0 and 1, the share of the teacher in the mixture.
    """
    log_p = log_soften(teacher_logits, temperature)
    log_q = log_soften(student_logits, temperature)
    from_teacher = ops.exp(log_p) * _log_mixture(log_q - log_p, beta)
    from_student = ops.exp(log_q) * _log_mixture(log_p - log_q, 1.0 - beta)
    return -ops.sum(beta * from_teacher + (1.0 - beta) * from_student, axis=-1)


def _log_mixture(log_ratio, share):
    """Return `log(share + (1 - share) exp(log_ratio))`."""
    is_near = ops.abs(log_ratio) < 1.0
    # The unused values are replaced before the computation. Otherwise their
    # gradient could be NaN.
    near = ops.where(is_near, log_ratio, 0.0)
    far = ops.where(is_near, 1.0, log_ratio)
    return ops.where(
        is_near,
        ops.log1p((1.0 - share) * ops.expm1(near)),
        ops.logaddexp(math.log(share), math.log1p(-share) + far),
    )


def split_kl_divergence(
    teacher_logits: Tensor,
    student_logits: Tensor,
    target: Tensor,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the two parts of the KL divergence, `(binary, non_target)`.

    With `p` and `q` as above, `k` the target class, and `p'`, `q'` the
    distributions over the other classes alone:

        binary     = KL((p_k, 1 - p_k) || (q_k, 1 - q_k))
        non_target = KL(p' || q')
        KL(p || q) = binary + (1 - p_k) * non_target

    Args:
        teacher_logits: `(..., classes)`.
        student_logits: `(..., classes)`.
        target: bool `(..., classes)`, true at one class of each distribution.
        temperature: float above 0.
    """
    teacher_margin, teacher_others = _split(teacher_logits, target, temperature)
    student_margin, student_others = _split(student_logits, target, temperature)
    # The logarithms of p_k and 1 - p_k are computed separately, so that both
    # are exact near 0 and near 1.
    binary = ops.sigmoid(teacher_margin) * (
        ops.log_sigmoid(teacher_margin) - ops.log_sigmoid(student_margin)
    ) + ops.sigmoid(-teacher_margin) * (
        ops.log_sigmoid(-teacher_margin) - ops.log_sigmoid(-student_margin)
    )
    p = ops.where(target, 0.0, ops.exp(teacher_others))
    non_target = ops.sum(p * (teacher_others - student_others), axis=-1)
    return binary, non_target


def _split(logits, target, temperature):
    """Return the log-odds of the target and the log-softmax of the others.

    Their shapes are `(...)` and `(..., classes)`; the latter is 0 at the
    target.
    """
    # The maximum of the other classes. The target is replaced by the minimum.
    lowest = ops.min(logits, axis=-1, keepdims=True)
    peak = ops.max(ops.where(target, lowest, logits), axis=-1, keepdims=True)
    scaled = ops.subtract(logits, ops.stop_gradient(peak)) / temperature
    # The target is replaced before `exp`, where it could overflow: afterwards,
    # the gradient of the value that `where` leaves out would be inf * 0.
    others = ops.where(target, 0.0, scaled)
    exps = ops.where(target, 0.0, ops.exp(others))
    log_total = ops.log(ops.sum(exps, axis=-1, keepdims=True))
    target_logit = ops.sum(ops.where(target, scaled, 0.0), axis=-1)
    margin = target_logit - ops.squeeze(log_total, axis=-1)
    return margin, ops.where(target, 0.0, others - log_total)


def minus_max(values: Tensor, axis: int = -1) -> Tensor:
    """Return values minus their maximum, which gets no gradient."""
    peak = ops.stop_gradient(ops.max(values, axis=axis, keepdims=True))
    return ops.subtract(values, peak)


def as_logits(outputs: Tensor, from_logits: bool) -> Tensor:
    """Return float32 logits for logits or probabilities.

    The logarithm of a probability is a logit: `softmax(log p) = p`.
    """
    outputs = ops.cast(outputs, "float32")
    if from_logits:
        return outputs
    # `where` and not `maximum`: on JAX, the gradient of `maximum` at 0 is a
    # product with 0, and the other factor overflows if the gradient of the
    # logit is above 4.
    return ops.log(ops.where(outputs < _TINY, _TINY, outputs))


def mean_of_teachers(outputs: Sequence[Tensor], from_logits: bool) -> Tensor:
    """Return the average of the probabilities of several teachers.

    Cross-entropy is linear in its targets, so a loss with the average of the
    probabilities has the same gradients as the average of the teachers' losses.

    Args:
        outputs: list of tensors `(..., classes)`, one per teacher.
        from_logits: bool. Whether `outputs` are logits or probabilities.

    Returns:
        A tensor `(..., classes)`: logits if `from_logits`, else probabilities.
    """
    if not from_logits:
        return sum(ops.cast(o, "float32") for o in outputs) / len(outputs)
    log_probs = ops.stack(
        [log_soften(as_logits(o, True), 1.0) for o in outputs], axis=0
    )  # (teachers, ..., classes)
    count = ops.log(ops.cast(len(outputs), "float32"))
    return ops.logsumexp(log_probs, axis=0) - count
