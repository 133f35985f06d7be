"""Checks of arguments, shared by the public classes and functions.

Each check returns the accepted value, so that a constructor checks and assigns
in one line. Each message says what was received.
"""

import math
import numbers
from typing import Any


def positive_float(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number above 0."""
    if not _is_number(value) or not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"`{name}` must be a finite number above 0. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def non_negative_float(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number of at least 0."""
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"`{name}` must be a finite number of at least 0. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Return `value` as a float if it lies in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(
            f"`{name}` must be a number from 0 to 1. Received: {name}={value!r}"
        )
    return float(value)


def open_fraction(name: str, value: Any) -> float:
    """Return `value` as a float if it lies in (0, 1)."""
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(
            f"`{name}` must be a number between 0 and 1, without 0 and 1. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int if it is a whole number above 0."""
    return _whole_number(name, value, 1, "above 0")


def non_negative_int(name: str, value: Any) -> int:
    """Return `value` as an int if it is a whole number of at least 0."""
    return _whole_number(name, value, 0, "of at least 0")


def _whole_number(name, value, minimum, words):
    if (
        not isinstance(value, numbers.Integral)
        or _is_bool(value)
        or value < minimum
    ):
        raise ValueError(
            f"`{name}` must be a whole number {words}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def positive_range(
    name: str, value: Any, upper: float = math.inf
) -> tuple[float, float]:
    """Return `value` as a tuple `(low, high)` with `0 < low <= high`."""
    try:
        low, high = (float(v) for v in value)
        valid = 0 < low <= high <= upper and math.isfinite(high)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        limit = "" if upper == math.inf else f" <= {upper:g}"
        raise ValueError(
            f"`{name}` must be two numbers (low, high) with "
            f"0 < low <= high{limit}. Received: {name}={value!r}"
        )
    return low, high


def _is_number(value):
    return isinstance(value, numbers.Real) and not _is_bool(value)


def _is_bool(value):
    return isinstance(value, bool)
