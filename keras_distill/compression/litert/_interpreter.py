"""Running LiteRT files."""

from collections.abc import Iterable
from typing import Any

import numpy as np

# The signature of the files that `export_litert` writes.
SIGNATURE = "serving_default"


def interpreter(content: bytes) -> Any:
    """Return a LiteRT interpreter with one thread.

    Args:
        content: the bytes of a LiteRT file.
    """
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content, num_threads=1)


def run_file(
    content: bytes, names: list[str], inputs: Iterable[np.ndarray]
) -> list[np.ndarray]:
    """Return the outputs of a LiteRT file, as a list of arrays.

    Args:
        content: the bytes of a file that `export_litert` wrote.
        names: the names of the inputs.
        inputs: an array of examples for each input.
    """
    runner = interpreter(content).get_signature_runner(SIGNATURE)
    results = [
        runner(**{name: array[None] for name, array in zip(names, arrays)})
        for arrays in zip(*inputs)
    ]
    return [
        np.concatenate([result[f"output_{i}"] for result in results])
        for i in range(len(results[0]))
    ]
