"""A LiteRT file as C code, for microcontrollers without a file system."""

import pathlib
import re

import numpy as np

from keras_distill.compression.litert._interpreter import SIGNATURE
from keras_distill.compression.litert._interpreter import interpreter

_PER_LINE = 12


def c_array(content: bytes, file: str) -> str:
    """Return C or C++ code with the bytes of a LiteRT file.

    Besides the bytes, aligned to 16 as the interpreter requires, it has the
    scale and the zero point of each input and output in int8:

        real value = scale * (int8 value - zero point)

    Args:
        content: the bytes of the file.
        file: name of the C file, from which the names in it are made.
    """
    name = _identifier(pathlib.PurePath(file).stem)
    runner = interpreter(content).get_signature_runner(SIGNATURE)
    lines = [
        "// Written by keras_distill.compression.export_litert.",
        "#pragma once",
        "",
    ]
    for details in (runner.get_input_details(), runner.get_output_details()):
        for tensor, detail in details.items():
            lines += _tensor(f"{name}_{_identifier(tensor)}", tensor, detail)
    return "\n".join([*lines, *_bytes(name, content), ""])


def _identifier(name):
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name


def _tensor(name, tensor, detail):
    shape = tuple(int(size) for size in detail["shape"])
    lines = [f"// {tensor}: shape {shape}, {np.dtype(detail['dtype']).name}"]
    if np.dtype(detail["dtype"]) == "int8":
        scale, zero_point = detail["quantization"]
        lines += [
            f"static const float {name}_scale = {float(scale)!r}f;",
            f"static const int {name}_zero_point = {int(zero_point)};",
        ]
    return [*lines, ""]


def _bytes(name, content):
    rows = [
        ", ".join(
            f"0x{byte:02x}" for byte in content[start : start + _PER_LINE]
        )
        for start in range(0, len(content), _PER_LINE)
    ]
    return [
        "#ifdef __cplusplus",
        "alignas(16)",
        "#else",
        "_Alignas(16)",
        "#endif",
        f"static const unsigned char {name}[] = {{",
        *[f"    {row}," for row in rows],
        "};",
        f"static const unsigned int {name}_length = {len(content)};",
    ]
