"""The most probable classes of an output, chosen where the teacher ran."""

import math

from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _divergence

# The logarithm of a smaller probability would be -inf where none is left.
_TINY = 1e-30
# The number of classes of a group. Of many classes, finding the best ones takes
# as long with 64 as with 512.
_GROUP = 128


def most_probable(
    outputs: Tensor, top_k: int, from_logits: bool
) -> dict[str, Tensor]:
    """Return the `top_k` most probable classes of an output.

    Args:
        outputs: `(..., classes)`.
        top_k: int, at most the number of classes.
        from_logits: bool. Whether outputs are logits or probabilities.

    Returns:
        A dict of `"classes"` and `"log_probs"`, both `(..., top_k)`, and
        `"log_rest"`, the log-probability of each other class, `(...)`.
    """
    logits = _divergence.as_logits(outputs, from_logits)
    kept, classes = _top_k(logits, top_k)
    # Not `kept[..., -1:]`: XLA then sorts all classes, which takes 100 times as
    # long on a CPU.
    peak = ops.max(kept, axis=-1, keepdims=True)
    lowest = ops.min(kept, axis=-1, keepdims=True)
    # Added up and not 1 minus the kept ones, which float32 would round to 0. Of
    # several classes that are as probable as the last one, some are kept.
    exps = ops.where(logits <= lowest, ops.exp(logits - peak), 0.0)
    kept_exps = ops.exp(kept - peak)
    counted = ops.where(kept <= lowest, kept_exps, 0.0)
    rest = ops.sum(exps, axis=-1) - ops.sum(counted, axis=-1)
    log_total = ops.log(rest + ops.sum(kept_exps, axis=-1))
    others = max(outputs.shape[-1] - top_k, 1)
    return {
        "classes": classes,
        "log_probs": kept - peak - log_total[..., None],
        "log_rest": ops.log(ops.maximum(rest, _TINY) / others) - log_total,
    }


def _top_k(logits, top_k):
    """Return what `ops.top_k` returns, several times as fast for many classes.

    The best `top_k` classes lie in the `top_k` groups with the largest maxima.
    """
    size = logits.shape[-1]
    if size <= 2 * top_k * _GROUP:
        return ops.top_k(logits, top_k)
    places = tuple(ops.shape(logits))[:-1]
    if size % _GROUP:
        padding = [(0, 0)] * len(places) + [(0, -size % _GROUP)]
        logits = ops.pad(logits, padding, constant_values=-math.inf)
    groups = ops.reshape(logits, (*places, -1, _GROUP))
    _, best = ops.top_k(ops.max(groups, axis=-1), top_k)
    candidates = ops.take_along_axis(groups, best[..., None], axis=-2)
    kept, index = ops.top_k(
        ops.reshape(candidates, (*places, top_k * _GROUP)), top_k
    )
    group = ops.take_along_axis(best, index // _GROUP, axis=-1)
    return kept, group * _GROUP + index % _GROUP
