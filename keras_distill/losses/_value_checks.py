"""Checks of the values of a batch: outputs and labels that cannot be right.

A compiled step cannot raise an error. These functions count wrong values, and
`ValueWatch` raises when it reads the counts from the logs. Contradictions that
are visible in the models' last layers are refused by `compile()`. For
functions, subclassed models and labels, only the values can be checked.
"""

import warnings

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _shapes
from keras_distill.losses._label_loss import as_one_hot_or_sparse

# The number of rows that are checked. It is small, so that the check is fast.
_ROWS = 64
# In smaller batches, logits can lie between 0 and 1 by chance.
_MIN_BATCH = 32


def contradicts(
    outputs: Tensor, predicts: str | None, from_logits: bool
) -> Tensor:
    """Return 1 if outputs contradict `from_logits`, else 0.

    Args:
        outputs: `(batch, ...)`.
        predicts: as the attribute of `DistillationLoss`. Only `"classes"` and
            `"labels"` are checked.
        from_logits: bool. Whether the outputs should be logits.
    """
    if predicts == "classes":
        if from_logits:
            return _are_probabilities(outputs)
        return _are_not_probabilities(outputs)
    if predicts == "labels":
        outputs = ops.cast(ops.reshape(outputs, (-1,))[: 16 * _ROWS], "float32")
        inside = ops.logical_and(outputs >= 0.0, outputs <= 1.0)
        if not from_logits:
            return _as_float(ops.logical_not(ops.all(inside)))
        enough = ops.shape(outputs)[0] >= _MIN_BATCH
        return _as_float(ops.logical_and(ops.all(inside), enough))
    return 0.0


def _rows(outputs):
    rows = ops.reshape(outputs, (-1, outputs.shape[-1]))[:_ROWS]
    return ops.cast(rows, "float32")


def _are_probabilities(outputs):
    """Return 1 if every row is a probability distribution."""
    rows = _rows(outputs)
    close = ops.abs(ops.sum(rows, axis=-1) - 1.0) < 1e-3
    return _as_float(ops.logical_and(ops.all(rows >= 0.0), ops.all(close)))


def _are_not_probabilities(outputs):
    """Return 1 if a row is not a distribution, at half precision."""
    rows = _rows(outputs)
    far = ops.abs(ops.sum(rows, axis=-1) - 1.0) > 0.05
    return _as_float(ops.logical_or(ops.any(rows < -1e-3), ops.any(far)))


def bad_labels(
    labels: Tensor,
    shape: _shapes.Shape,
    predicts: str,
    weights: Tensor | None,
) -> Tensor:
    """Return the number of samples or places with invalid labels.

    Class indices must be whole numbers from 0 to the number of classes - 1.
    One-hot labels must be probabilities that add up to 1, or all 0. Independent
    labels must lie between 0 and 1.

    Args:
        labels: as for `ClassicKD`, or for `BinaryKD`.
        shape: static shape of the student's outputs.
        predicts: `"classes"` or `"labels"`.
        weights: float, one for each place of the outputs, or `None`. Labels of
            weight 0 are not checked.
    """
    is_invalid = (
        _are_invalid_classes if predicts == "classes" else _are_invalid_labels
    )
    bad = _as_float(is_invalid(ops.cast(labels, "float32"), shape))
    if weights is not None:
        bad = bad * _as_float(ops.not_equal(weights, 0.0))
    return ops.sum(bad)


def _are_invalid_classes(labels, shape):
    if as_one_hot_or_sparse(labels, shape) == "one-hot":
        # Written so that NaN is invalid too.
        valid = ops.logical_and(
            ops.all(labels >= 0.0, axis=-1),
            ops.sum(labels, axis=-1) <= 1.0 + 1e-3,
        )
        return ops.logical_not(valid)
    labels = _shapes.with_rank(labels, len(shape) - 1)
    nearest = ops.clip(ops.floor(labels), 0.0, shape[-1] - 1.0)
    return ops.not_equal(labels, nearest)


def _are_invalid_labels(labels, shape):
    if not _shapes.fits(labels.shape, shape):
        return 0.0  # The loss raises the error.
    labels = _shapes.with_rank(labels, len(shape))
    bad = ops.not_equal(labels, ops.clip(labels, 0.0, 1.0))
    return ops.any(bad, axis=-1) if len(bad.shape) > 1 else bad


def warn_of_coordinates(labels: Tensor, loss: keras.losses.Loss) -> None:
    """Warn if labels look like coordinates, after a view that moves pixels."""
    if len(labels.shape) in (2, 3) and labels.shape[-1] in (2, 4):
        warnings.warn(
            "The view moves pixels, but it does not change labels that are "
            "values. This is right for an age or a price, and wrong for boxes "
            f"and key points. Received: labels of shape {tuple(labels.shape)} "
            f"for the loss {loss.name!r}. Augment coordinates in the data "
            "pipeline, or use `alpha=1` to train without labels: the teacher "
            "predicts for the view.",
            stacklevel=2,
        )


def _as_float(condition):
    return ops.cast(condition, "float32")
