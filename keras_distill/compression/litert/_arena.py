"""The RAM that a LiteRT file takes on a microcontroller."""

import importlib.util
import re
import subprocess
import sys

# In a process of its own: the interpreter is native code, and prints what it
# plans where Python cannot read it.
_PROGRAM = """
import sys
from tflite_micro.python.tflite_micro import runtime
content = sys.stdin.buffer.read()
runtime.Interpreter.from_bytes(content, arena_size=2**30).print_allocations()
"""
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


def micro_is_installed() -> bool:
    """Return whether the interpreter for microcontrollers is installed."""
    return importlib.util.find_spec("tflite_micro") is not None


def arena_bytes(content: bytes) -> int:
    """Return the bytes that LiteRT for Microcontrollers plans for a file.

    This is its tensor arena: all activations that live at once, and what the
    interpreter keeps of each tensor and operation. Weights stay in the file.
    The pointers are those of this machine, so that a microcontroller with 32
    bits takes a little less.

    Args:
        content: the bytes of a LiteRT file.

    Raises:
        RuntimeError: if the interpreter cannot run the file.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=content, capture_output=True
    )
    printed = (done.stdout + done.stderr).decode(errors="replace")
    total = _TOTAL.search(printed)
    if done.returncode or total is None:
        lines = printed.strip().splitlines() or ["no message"]
        raise RuntimeError(
            "LiteRT for Microcontrollers cannot run the file. It reports: "
            f"{_reason(lines)}"
        )
    return int(total[1])


def _reason(lines):
    """Return the line that names what is missing, or the last one."""
    named = [line for line in lines if "opcode" in line]
    return (named or lines[-1:])[0].strip()
