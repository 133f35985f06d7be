"""Float64 NumPy versions of the formulas; nothing is imported from the package.

Written the slow, literal way, one distribution at a time, so that a mistake in
the package is not likely to be made here again.
"""

import math

import numpy as np


def log_softmax(logits):
    shifted = [float(v) - float(max(logits)) for v in logits]
    log_total = math.log(math.fsum(math.exp(v) for v in shifted))
    return np.array([v - log_total for v in shifted])


def soften(logits, temperature):
    peak = float(max(logits))
    return log_softmax([(float(v) - peak) / temperature for v in logits])


def function_matching(teacher, student, temperature):
    """`T^2 * KL(softmax(t / T) || softmax(s / T))` of one sample."""
    log_p, log_q = soften(teacher, temperature), soften(student, temperature)
    terms = [math.exp(p) * (p - q) for p, q in zip(log_p, log_q)]
    return temperature**2 * math.fsum(terms)


def function_matching_gradient(teacher, student, temperature):
    """Its gradient with respect to the student: `T * (q - p)`."""
    p = np.exp(soften(teacher, temperature))
    q = np.exp(soften(student, temperature))
    return temperature * (q - p)


def classic_kd(labels, teacher, student, alpha, temperature):
    """`alpha * T^2 * CE(p, q) + (1 - alpha) * -log q_label` of one sample."""
    p, log_q = (
        np.exp(soften(teacher, temperature)),
        soften(student, temperature),
    )
    soft = -math.fsum(a * b for a, b in zip(p, log_q))
    hard = -log_softmax(student)[labels]
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def classic_kd_gradient(labels, teacher, student, alpha, temperature):
    soft = function_matching_gradient(teacher, student, temperature)
    hard = np.exp(log_softmax(student))
    hard[labels] -= 1
    return alpha * soft + (1 - alpha) * hard
