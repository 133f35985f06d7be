"""What the values of a batch say against the arguments of a loss.

A compiled step can't raise. These functions count what is wrong in a batch, and
`ValueWatch` raises when the count arrives with the logs. What can be told from
the models' last layers is refused at `compile()` already; functions, subclassed
models and labels show what they are in their values alone.
"""

import warnings

from keras import ops

from keras_distill.losses import _shapes
from keras_distill.losses._label_loss import as_one_hot_or_sparse

# So many rows tell enough, and looking at them costs nothing.
_ROWS = 64
# Logits that happen to lie between 0 and 1 are fewer than this.
_FEWEST = 32


def contradicts(outputs, predicts, from_logits):
    """Return 1 if outputs are no logits (or no probabilities), else 0.

    Args:
        outputs: `(batch, ...)`.
        predicts: `"classes"`, `"labels"`, or anything else, which is never
            contradicted.
        from_logits: bool, as the loss has it.
    """
    if predicts == "classes":
        return _no_logits(outputs) if from_logits else _no_softmax(outputs)
    if predicts == "labels":
        outputs = ops.cast(ops.reshape(outputs, (-1,))[: 16 * _ROWS], "float32")
        inside = ops.logical_and(outputs >= 0.0, outputs <= 1.0)
        if not from_logits:
            return _as_float(ops.logical_not(ops.all(inside)))
        many = ops.shape(outputs)[0] >= _FEWEST
        return _as_float(ops.logical_and(ops.all(inside), many))
    return 0.0


def _rows(outputs):
    rows = ops.reshape(outputs, (-1, outputs.shape[-1]))[:_ROWS]
    return ops.cast(rows, "float32")


def _no_logits(outputs):
    """Every row is a probability distribution."""
    rows = _rows(outputs)
    close = ops.abs(ops.sum(rows, axis=-1) - 1.0) < 1e-3
    return _as_float(ops.logical_and(ops.all(rows >= 0.0), ops.all(close)))


def _no_softmax(outputs):
    """A row is no probability distribution, up to half precision."""
    rows = _rows(outputs)
    far = ops.abs(ops.sum(rows, axis=-1) - 1.0) > 0.05
    return _as_float(ops.logical_or(ops.any(rows < -1e-3), ops.any(far)))


def bad_labels(labels, outputs, predicts, weights):
    """Return for how many samples or places labels can't be right.

    Class indices must be whole numbers from 0 to the number of classes, and
    one-hot labels probabilities that add up to 1, or all 0. Of several labels
    each must lie between 0 and 1.

    Args:
        labels: as for `ClassicKD`, or for `BinaryKD`.
        outputs: the student's outputs.
        predicts: `"classes"` or `"labels"`.
        weights: float, one for each place of the outputs, or `None`. Labels of
            weight 0 may be anything.
    """
    wrong = _no_classes if predicts == "classes" else _no_shares
    bad = _as_float(wrong(ops.cast(labels, "float32"), outputs))
    if weights is not None:
        bad = bad * _as_float(ops.not_equal(weights, 0.0))
    return ops.sum(bad)


def _no_classes(labels, outputs):
    if as_one_hot_or_sparse(labels, outputs.shape) == "one-hot":
        return ops.logical_or(
            ops.any(labels < 0.0, axis=-1),
            ops.sum(labels, axis=-1) > 1.0 + 1e-3,
        )
    labels = ops.reshape(labels, ops.shape(outputs)[:-1])
    nearest = ops.clip(ops.floor(labels), 0.0, outputs.shape[-1] - 1.0)
    return ops.not_equal(labels, nearest)


def _no_shares(labels, outputs):
    if not _shapes.fits(labels.shape, outputs.shape):
        return 0.0  # The loss says what is wrong.
    labels = _shapes.like(labels, outputs)
    bad = ops.not_equal(labels, ops.clip(labels, 0.0, 1.0))
    return ops.any(bad, axis=-1) if len(bad.shape) > 1 else bad


def warn_of_coordinates(labels, loss):
    """Warn if labels look like coordinates behind a view that moves pixels."""
    if len(labels.shape) in (2, 3) and labels.shape[-1] in (2, 4):
        warnings.warn(
            "The view moves pixels, and labels of values stay as they are: "
            "right for an age or a price, wrong for boxes and key points. "
            f"Received: labels of shape {tuple(labels.shape)} for the loss "
            f"{loss.name!r}. Move coordinates in the data pipeline, or give "
            "the labels no weight (`alpha=1`): the teacher's values are those "
            "of the view.",
            stacklevel=2,
        )


def _as_float(condition):
    return ops.cast(condition, "float32")
