"""The form of a replayed batch: recorded rows travel as part of the inputs."""

import typing

# The keys of a replayed batch. Keras moves such a dict to the device as it
# moves any inputs.
INPUTS, DRAWN, OUTPUTS = "recorded_inputs", "recorded_drawn", "teacher_outputs"


class Record(typing.NamedTuple):
    """What was drawn for a batch, and the teacher's outputs, both by name."""

    drawn: dict
    outputs: dict


def join(x, drawn, outputs):
    """Return inputs, drawn values and teacher outputs as one dict."""
    return {INPUTS: x, DRAWN: drawn, OUTPUTS: outputs}


def split(x):
    """Return `(inputs, Record)` of a replayed batch, else `(x, None)`."""
    if not (isinstance(x, dict) and set(x) == {INPUTS, DRAWN, OUTPUTS}):
        return x, None
    return x[INPUTS], Record(x[DRAWN], x[OUTPUTS])
