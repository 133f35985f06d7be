"""What several tests ask of LiteRT files."""

import numpy as np
import pytest
from common import BACKEND

# In the other backends, each export starts a process of its own.
tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the same converter for all backends"
)


def interpreter_of(path):
    from ai_edge_litert import interpreter

    made = interpreter.Interpreter(
        str(path),
        experimental_op_resolver_type=(
            interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    made.allocate_tensors()
    return made


def answers_of(path, *inputs):
    """Return all outputs of a file, for the examples of a batch."""
    runner = interpreter_of(path).get_signature_runner()
    names = list(runner.get_input_details())
    answers = [
        runner(**{name: array[None] for name, array in zip(names, arrays)})
        for arrays in zip(*inputs)
    ]
    return [
        np.concatenate([answer[name] for answer in answers])
        for name in sorted(answers[0])
    ]


def operations_in(path):
    return [x["op_name"] for x in interpreter_of(path)._get_ops_details()]
