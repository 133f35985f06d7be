"""Plain Python values as JSON and arrays, without pickle."""

from typing import Any

import numpy as np

_ARRAY = "__array__"
_TUPLE = "__tuple__"


class NotPlainError(TypeError):
    """Raised for a value that is neither plain data nor an array."""


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value that JSON can hold, with its arrays stored apart.

    Args:
        value: `None`, bool, int, float, str, array, or a list, tuple or dict
            (with strings as keys) of these.
        arrays: dict that gets the arrays.

    Raises:
        NotPlainError: if there is anything else in the value.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        key = str(len(arrays))
        array = np.asarray(value)
        # NumPy's files do not know the dtypes of others, such as bfloat16.
        arrays[key] = np.frombuffer(array.tobytes(), "uint8")
        scalar = isinstance(value, np.generic)
        return {_ARRAY: [key, array.dtype.name, list(array.shape), scalar]}
    if type(value) in (list, tuple):
        items = [encode(item, arrays) for item in value]
        return {_TUPLE: items} if type(value) is tuple else items
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: encode(item, arrays) for key, item in value.items()}
    raise NotPlainError(f"Received: {type(value).__name__}")


def decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return the value that `encode` got."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        key, dtype, shape, scalar = value[_ARRAY]
        array = np.frombuffer(arrays[key].tobytes(), np.dtype(dtype))
        return array[0] if scalar else array.reshape(shape).copy()
    if _TUPLE in value:
        return tuple(decode(item, arrays) for item in value[_TUPLE])
    return {key: decode(item, arrays) for key, item in value.items()}
