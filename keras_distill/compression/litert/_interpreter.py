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
    takes, returns = runner.get_input_details(), runner.get_output_details()
    results = [
        runner(
            **{
                name: quantized(array[None], takes[name])
                for name, array in zip(names, arrays)
            }
        )
        for arrays in zip(*inputs)
    ]
    return [
        _dequantized(
            np.concatenate([result[f"output_{i}"] for result in results]),
            returns[f"output_{i}"],
        )
        for i in range(len(results[0]))
    ]


def quantized(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Return floats as the integers that a file with an int8 input takes."""
    if values.dtype.kind != "f" or detail["dtype"] != np.int8:
        return values
    scale, zero_point = detail["quantization"]
    return np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(
        "int8"
    )


def _dequantized(values, detail):
    """Return the floats that integers of an output in int8 stand for."""
    scale, zero_point = detail["quantization"]
    if detail["dtype"] != np.int8 or not scale:
        return values
    return (values.astype("float32") - zero_point) * np.float32(scale)
