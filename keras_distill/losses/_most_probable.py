"""The most probable classes of a teacher, in place of all of its outputs.

Of each distribution over `classes`, a recording with `top_k` has three fields:

    classes     (..., top_k)   their indices
    log_probs   (..., top_k)   their log-probabilities
    log_rest    (...)          log-probability of each other class

The teacher said nothing about how it divides the rest among the other classes.
So the losses compare the rest as one class: the student is free to divide it.
"""

import math
from typing import Any

from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _divergence


class MostProbable:
    """One output of a teacher, by its most probable classes.

    Keras takes it for a leaf of a structure.

    Args:
        fields: dict of `"classes"`, `"log_probs"` and `"log_rest"`.
        num_classes: int, the size of the last axis of the whole output.
        from_logits: bool. Whether the whole output is logits or probabilities.
    """

    dtype = "float32"

    def __init__(
        self, fields: dict[str, Tensor], num_classes: int, from_logits: bool
    ) -> None:
        self.fields, self.num_classes = fields, num_classes
        self.from_logits = from_logits

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the whole output."""
        return (*self.fields["log_rest"].shape, self.num_classes)

    def with_fields(self, fields: dict[str, Tensor]) -> "MostProbable":
        """Return the same kind of output with other fields."""
        return MostProbable(fields, self.num_classes, self.from_logits)

    def dense(self) -> Tensor:
        """Return the whole output, with the rest divided evenly."""
        rest = ops.expand_dims(self.fields["log_rest"], -1)
        outputs = _put(
            ops.repeat(rest, self.num_classes, axis=-1),
            self.fields["classes"],
            self.fields["log_probs"],
        )
        return outputs if self.from_logits else ops.exp(outputs)


def dense(output: Any) -> Tensor:
    """Return a teacher's output as one tensor."""
    return output.dense() if isinstance(output, MostProbable) else output


def logits(
    fields: dict[str, Tensor], student: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits of `top_k + 1` classes, the last of which is the rest.

    At this temperature, their softmax gives the probabilities of both models,
    where that of the rest is the sum over all other classes.

    Args:
        fields: the fields of the teacher's output, for as many classes.
        student: float32 logits `(..., classes)`.
        temperature: float above 0.

    Returns:
        `(teacher, student)`, both `(..., top_k + 1)`, or `(..., classes)` if
        there is no rest.
    """
    classes = ops.cast(fields["classes"], "int32")
    num_others = student.shape[-1] - classes.shape[-1]
    log_probs = ops.cast(fields["log_probs"], "float32")
    student = _divergence.minus_max(student)
    kept = ops.take_along_axis(student, classes, axis=-1)
    if num_others == 0:
        return log_probs, kept
    # The sum over the others, and not 1 minus the kept ones: near 1, that has
    # no digits left.
    others = _put(student, classes, ops.full_like(kept, -math.inf))
    rest = temperature * ops.logsumexp(others / temperature, axis=-1)
    log_rest = ops.cast(fields["log_rest"], "float32")
    log_rest = log_rest + temperature * math.log(num_others)
    return _with_last(log_probs, log_rest), _with_last(kept, rest)


def _with_last(values, last):
    return ops.concatenate([values, ops.expand_dims(last, -1)], axis=-1)


def _put(outputs, classes, values):
    """Return outputs `(..., classes)` with other values at some classes."""
    size = outputs.shape[-1]
    rows = ops.reshape(classes, (-1, classes.shape[-1]))
    row = ops.arange(ops.shape(rows)[0], dtype="int32")
    places = ops.stack(
        [ops.broadcast_to(row[:, None], ops.shape(rows)), rows], axis=-1
    )
    changed = ops.scatter_update(
        ops.reshape(outputs, (-1, size)),
        ops.reshape(places, (-1, 2)),
        ops.reshape(values, (-1,)),
    )
    return ops.reshape(changed, ops.shape(outputs))
