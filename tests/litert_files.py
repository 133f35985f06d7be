"""What several tests ask of LiteRT files."""

import numpy as np
import pytest

# In the other backends, each export starts a process of its own.
# The path from a model to that process is tested on every backend.
tensorflow_only = pytest.mark.one_backend("tensorflow")


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


def outputs_of_file(path, *inputs):
    """Return all outputs of a file, for the examples of a batch."""
    runner = interpreter_of(path).get_signature_runner()
    names = list(runner.get_input_details())
    outputs = [
        runner(**{name: array[None] for name, array in zip(names, arrays)})
        for arrays in zip(*inputs)
    ]
    return [
        np.concatenate([output[name] for output in outputs])
        for name in sorted(outputs[0])
    ]


def operations_in(path):
    return [x["op_name"] for x in interpreter_of(path)._get_ops_details()]
