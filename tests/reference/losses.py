"""Float64 NumPy versions of the formulas; nothing is imported from the package.

They are slow and literal, and compute one distribution at a time, so that a
mistake in the package is not likely to be repeated here.
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


def generalized_divergence(teacher, student, temperature, kind, beta):
    """`T^2` times KL(p || q), KL(q || p) or the Jensen-Shannon divergence.

    Returns the value and its gradient for the student.
    """
    log_p, log_q = soften(teacher, temperature), soften(student, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    if kind == "forward":
        return (
            function_matching(teacher, student, temperature),
            function_matching_gradient(teacher, student, temperature),
        )
    if kind == "reverse":
        # Shifted by a constant to keep digits: it does not change the gradient.
        shifted = [float(t) - float(teacher[np.argmax(q)]) for t in teacher]
        ratios = log_q - np.array(shifted) / temperature
        value = math.fsum(a * (b - c) for a, b, c in zip(q, log_q, log_p))
        gradient = q * (ratios - math.fsum(q * ratios))
    else:
        log_m = np.logaddexp(math.log(beta) + log_p, math.log1p(-beta) + log_q)
        value = math.fsum(
            beta * a * (b - m) + (1 - beta) * c * (d - m)
            for a, b, c, d, m in zip(p, log_p, q, log_q, log_m)
        )
        ratios = log_q - log_m
        gradient = (1 - beta) * q * (ratios - math.fsum(q * ratios))
    return temperature**2 * value, temperature * gradient


def weighted_correlation(weights, p, q):
    """Return Pearson's r of weighted values."""
    weights = np.float64(weights) / np.sum(weights)
    p, q = p - weights @ p, q - weights @ q
    return (weights @ (p * q)) / math.sqrt((weights @ p**2) * (weights @ q**2))


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


def log_sigmoid(logit):
    return -math.log1p(math.exp(-abs(logit))) + min(logit, 0.0)


def binary_kd(labels, teacher, student, alpha, temperature):
    """Mean of `alpha * T^2 * BCE(p, q) + (1 - alpha) * BCE(labels, s)`."""
    total = []
    for y, t, s in zip(labels, teacher, student):
        y, t, s = float(y), float(t), float(s)
        p, not_p = (math.exp(log_sigmoid(z / temperature)) for z in (t, -t))
        log_q, log_not_q = (log_sigmoid(z / temperature) for z in (s, -s))
        soft = -p * log_q - not_p * log_not_q
        hard = -y * log_sigmoid(s) - (1 - y) * log_sigmoid(-s)
        total.append(alpha * temperature**2 * soft + (1 - alpha) * hard)
    return math.fsum(total) / len(total)


def binary_kd_gradient(labels, teacher, student, alpha, temperature):
    """For each label `alpha * T * (q - p) + (1 - alpha) * (sigmoid(s) - y)`."""
    gradient = []
    for y, t, s in zip(labels, teacher, student):
        y, t, s = float(y), float(t), float(s)
        # Computed from the smaller of q and p, or 1 - q and 1 - p.
        sign = -1.0 if t > 0 else 1.0
        q, p = (math.exp(log_sigmoid(sign * z / temperature)) for z in (s, t))
        soft = temperature * sign * (q - p)
        hard = (1 - y) * math.exp(log_sigmoid(s)) - y * math.exp(
            log_sigmoid(-s)
        )
        gradient.append(alpha * soft + (1 - alpha) * hard)
    return np.array(gradient) / len(gradient)


def distance(name, target, values):
    """Return a distance of two vectors and its gradient for the second."""
    target, values = np.float64(target), np.float64(values)
    error, size = values - target, len(values)
    if name == "mse":
        return np.mean(error**2), 2 * error / size
    if name == "mae":
        return np.mean(np.abs(error)), np.sign(error) / size
    if name == "huber":
        near = np.abs(error) <= 1
        value = np.where(near, error**2 / 2, np.abs(error) - 0.5)
        return np.mean(value), np.clip(error, -1, 1) / size
    length = np.linalg.norm(values)
    unit, direction = values / length, target / np.linalg.norm(target)
    cosine = unit @ direction
    return 1 - cosine, (cosine * unit - direction) / length


def value_matching(labels, teacher, student, name, alpha):
    """`alpha * distance(t, s) + (1 - alpha) * distance(labels, s)`."""
    soft, soft_gradient = distance(name, teacher, student)
    hard, hard_gradient = distance(name, labels, student)
    return (
        alpha * soft + (1 - alpha) * hard,
        alpha * soft_gradient + (1 - alpha) * hard_gradient,
    )


def z_scores(values):
    """Return `(z, std)`. The std of constant values is 1."""
    values = [float(v) for v in values]
    mean = math.fsum(values) / len(values)
    centred = [v - mean for v in values]
    std = math.sqrt(math.fsum(v * v for v in centred) / len(values))
    std = std if std >= 1e-6 else 1.0
    return np.array(centred) / std, std


def standardized_function_matching(teacher, student, temperature):
    return function_matching(
        z_scores(teacher)[0], z_scores(student)[0], temperature
    )


def standardized_function_matching_gradient(teacher, student, temperature):
    """The gradient for the z-scores, times the Jacobian of the z-scores."""
    z, std = z_scores(student)
    size = len(z)
    jacobian = (np.eye(size) - 1 / size - np.outer(z, z) / size) / std
    if max(student) - min(student) < 1e-6:
        jacobian = np.eye(size) - 1 / size
    return jacobian @ function_matching_gradient(
        z_scores(teacher)[0], z, temperature
    )


def correlation_distance(log_p, log_q):
    """Return `1 - r(p, q)` and its gradient with respect to `log_q`.

    `r` is computed by `np.corrcoef` from the values divided by their maximum,
    which does not change it. For constant values, see `DIST`.
    """
    p, q = np.exp(log_p - np.max(log_p)), np.exp(log_q - np.max(log_q))
    z_p, z_q = z_scores(p)[0], z_scores(q)[0]
    if min(np.std(p), np.std(q)) >= 1e-6:
        value = 1 - np.corrcoef(p, q)[0, 1]
    else:
        value = float(np.std(p) >= 1e-6 or np.std(q) >= 1e-6) / 2
    if np.std(q) >= 1e-6:
        correlation = math.fsum(z_p * z_q) / len(p)
        slope = -(z_p - correlation * z_q) / (len(p) * np.std(q))
    else:
        slope = -z_p / len(p)
    return value, q * slope


def dist_inter(teacher, student, temperature):
    """`T^2 * (1 - r)` of one sample, and its gradient."""
    value, slope = correlation_distance(
        soften(teacher, temperature), soften(student, temperature)
    )
    return temperature**2 * value, temperature * slope


def dist_intra(teachers, students, temperature):
    """`T^2 * mean over classes of 1 - r` of one batch, and its gradient."""
    log_p = np.array([soften(t, temperature) for t in teachers])
    log_q = np.array([soften(s, temperature) for s in students])
    total, slopes = 0.0, np.zeros_like(log_q)
    for k in range(log_p.shape[1]):
        value, slopes[:, k] = correlation_distance(log_p[:, k], log_q[:, k])
        total += value
    gradient = slopes - np.exp(log_q) * slopes.sum(axis=1, keepdims=True)
    count = log_p.shape[1]
    return temperature**2 * total / count, temperature * gradient / count


def decoupled_kd(label, teacher, student, weights, temperature):
    """The loss of one sample for `weights = (target, non-target, label)`."""
    log_p, log_q = soften(teacher, temperature), soften(student, temperature)

    def two_ways(logs):
        others = np.delete(logs, label)
        peak = max(others)
        total = peak + math.log(math.fsum(np.exp(others - peak)))
        return [logs[label], total]

    binary = math.fsum(
        math.exp(p) * (p - q) for p, q in zip(two_ways(log_p), two_ways(log_q))
    )
    others = function_matching(
        np.delete(teacher, label), np.delete(student, label), temperature
    )
    return (
        weights[0] * temperature**2 * binary
        + weights[1] * others
        - weights[2] * log_softmax(student)[label]
    )


def decoupled_kd_gradient(label, teacher, student, weights, temperature):
    p = np.exp(soften(teacher, temperature))
    q = np.exp(soften(student, temperature))
    rest = np.delete(np.arange(len(p)), label)
    q_others = np.exp(soften(student[rest], temperature))
    # 1 - p_k is the sum of the others. The difference would lose digits.
    if p[label] > 0.5:
        gap = temperature * (math.fsum(p[rest]) - math.fsum(q[rest]))
    else:
        gap = temperature * (q[label] - p[label])
    binary, others = np.zeros(len(p)), np.zeros(len(p))
    binary[label], binary[rest] = gap, -gap * q_others
    others[rest] = function_matching_gradient(
        teacher[rest], student[rest], temperature
    )
    hard = np.exp(log_softmax(student))
    hard[label] -= 1
    return weights[0] * binary + weights[1] * others + weights[2] * hard


def unit(vector):
    """Return a vector at unit length, and a vector of zeros unchanged."""
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def attention_transfer(teacher, student, p):
    """Mean of `(at(t) - at(s))^2` of one sample, `(places, channels)`."""
    maps = [
        unit(np.array([np.mean(np.abs(place) ** p) for place in feature]))
        for feature in (teacher, student)
    ]
    return np.mean((maps[0] - maps[1]) ** 2)


def similarity_preserving(teacher, student):
    """`1/n^2 ||G_T - G_S||_F^2` of a batch `(samples, all)`, by sample."""
    matrices = []
    for batch in (teacher, student):
        rows = [unit(np.array([a @ b for b in batch])) for a in batch]
        matrices.append(np.array(rows))
    return np.mean((matrices[0] - matrices[1]) ** 2, axis=1)


def huber(error):
    error = abs(error)
    return 0.5 * error**2 if error < 1 else error - 0.5


def relational_distances(batch):
    distances = np.array(
        [[np.linalg.norm(b - a) for b in batch] for a in batch]
    )
    count = len(batch)
    mean = distances.sum() / max(count * (count - 1), 1)
    return distances / (mean or 1.0)


def relational_kd(teacher, student, distance_weight, angle_weight):
    """The loss of a batch `(samples, all)`, by sample."""
    count = len(teacher)
    t, s = relational_distances(teacher), relational_distances(student)
    values = np.zeros(count)
    for i in range(count):
        values[i] = distance_weight * np.mean(
            [huber(t[i, j] - s[i, j]) for j in range(count)]
        )
        angles = [
            huber(
                unit(teacher[j] - teacher[i]) @ unit(teacher[k] - teacher[i])
                - unit(student[j] - student[i]) @ unit(student[k] - student[i])
            )
            for j in range(count)
            for k in range(count)
        ]
        values[i] += angle_weight * np.mean(angles)
    return values


def numerical_gradient(function, x, step=1e-6):
    """Return the gradient of a scalar function by central differences."""
    x = np.array(x, "float64")
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            gradient[index] += sign * function(moved) / (2 * step)
    return gradient
