"""Averages the outputs of several teachers, according to what they predict."""

from keras import ops

from keras_distill.losses import _divergence


def average(outputs, predicts, from_logits):
    """Return the average of several teachers' outputs, of the same kind.

    Probabilities are averaged, and returned as logits if logits were given.
    Cross-entropy is linear in its targets, so the average of the probabilities
    has the same gradient as the average of the losses of each teacher.

    Args:
        outputs: list of tensors of one shape, one per teacher.
        predicts: `"classes"` for a softmax over the last axis, `"labels"` for
            sigmoids, `"values"` for numbers, which are averaged directly.
        from_logits: whether `outputs` are logits or probabilities.

    Raises:
        ValueError: if `predicts` is `None`.
    """
    if predicts is None:
        raise ValueError(
            "To average several teachers, the loss must say what their outputs "
            "are. Received: predicts=None. Set the class attribute `predicts` "
            "of the loss: 'classes' or 'labels' average probabilities, "
            "'values' averages the outputs themselves."
        )
    if predicts == "classes":
        return _divergence.mean_of_teachers(outputs, from_logits)
    outputs = [ops.cast(output, "float32") for output in outputs]
    if predicts == "values" or not from_logits:
        return sum(outputs) / len(outputs)
    stacked = ops.stack(outputs, axis=0)
    # The logit of a mean probability: log mean p - log mean (1 - p).
    return ops.logsumexp(ops.log_sigmoid(stacked), axis=0) - ops.logsumexp(
        ops.log_sigmoid(-stacked), axis=0
    )
