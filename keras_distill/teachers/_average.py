"""The outputs of several teachers, averaged as what they predict."""

from keras import ops

from keras_distill.losses import _divergence


def average(outputs, predicts, from_logits):
    """Average the outputs of several teachers; given and returned alike.

    Cross-entropy is linear in its targets, so the average of the probabilities
    teaches what the average of the teachers' losses would teach.

    Args:
        outputs: list of tensors of one shape, one per teacher.
        predicts: `"classes"` for a softmax over the last axis, `"labels"` for
            sigmoids, `"values"` for numbers that are averaged as they are.
        from_logits: whether `outputs` are logits or probabilities.

    Raises:
        ValueError: if it is not known what the outputs are.
    """
    if predicts is None:
        raise ValueError(
            "Several teachers are averaged, and it is not known as what. Set "
            "the class attribute `predicts` of the loss: 'classes' or 'labels' "
            "average probabilities, 'values' the outputs as they are."
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
