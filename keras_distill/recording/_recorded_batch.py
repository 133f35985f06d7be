"""The form of a replayed batch: recorded values travel with the inputs."""

import typing

# The keys of a replayed batch. Keras moves such a dict to the device as it
# moves any inputs.
INPUTS, DRAWN, OUTPUTS = "recorded_inputs", "recorded_drawn", "teacher_outputs"
SHARED = "recorded_drawn_for_all"


class RecordedBatch(typing.NamedTuple):
    """The recorded values of a batch, without its inputs.

    Args:
        drawn: dict of what was drawn for the view, by name.
        outputs: dict of the teacher's outputs, by name.
    """

    drawn: dict
    outputs: dict


def join(x, drawn, shared, outputs):
    """Return inputs, drawn values and teacher outputs as one dict.

    All have one value per row, so that several devices can divide them. In
    `shared`, the values of all rows are equal.
    """
    return {INPUTS: x, DRAWN: drawn, SHARED: shared, OUTPUTS: outputs}


def as_drawn(drawn, shared):
    """Return drawn values in the shapes that they were drawn in."""
    return {**drawn, **{name: value[0] for name, value in shared.items()}}


def split(x):
    """Return `(x, RecordedBatch)` of replayed inputs, else `(x, None)`."""
    keys = {INPUTS, DRAWN, SHARED, OUTPUTS}
    if not (isinstance(x, dict) and set(x) == keys):
        return x, None
    drawn = as_drawn(x[DRAWN], x[SHARED])
    return x[INPUTS], RecordedBatch(drawn, x[OUTPUTS])


def share_of(size, number, count):
    """Return the slice of a batch of `size` samples that one of `count` gets.

    TensorFlow and JAX divide batches in the same way.
    """
    return slice(size * number // count, size * (number + 1) // count)
