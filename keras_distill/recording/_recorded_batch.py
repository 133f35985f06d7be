"""The form of a replayed batch: recorded values travel with the inputs."""

import typing

# The keys of a replayed batch. Keras moves such a dict to the device as it
# moves any inputs.
INPUTS, DRAWN, OUTPUTS = "recorded_inputs", "recorded_drawn", "teacher_outputs"


class RecordedBatch(typing.NamedTuple):
    """The recorded values of a batch, without its inputs.

    Args:
        drawn: dict of what was drawn for the view, by name.
        outputs: dict of the teacher's outputs, by name.
    """

    drawn: dict
    outputs: dict


def join(x, drawn, outputs):
    """Return inputs, drawn values and teacher outputs as one dict."""
    return {INPUTS: x, DRAWN: drawn, OUTPUTS: outputs}


def split(x):
    """Return `(x, RecordedBatch)` of replayed inputs, else `(x, None)`."""
    if not (isinstance(x, dict) and set(x) == {INPUTS, DRAWN, OUTPUTS}):
        return x, None
    return x[INPUTS], RecordedBatch(x[DRAWN], x[OUTPUTS])
