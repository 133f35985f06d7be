"""Coding integers with a range coder and models of their probabilities.

Each function works in both directions, as `_tensor_codec.py` describes.
"""

from typing import Any
from typing import TypeAlias

import constriction
import numpy as np

_Categorical = constriction.stream.model.Categorical
_Uniform = constriction.stream.model.Uniform

# The number of symbols that are processed at once.
_PART = 1 << 18


class Encoder:
    """Writes symbols, often only to measure the number of bits."""

    def __init__(self) -> None:
        self._stream = constriction.stream.queue.RangeEncoder()

    def code(self, model: Any, values: Any, count: int, dtype: Any) -> Any:
        """Write the values, and return them."""
        for part in parts(count):
            self._stream.encode(np.asarray(values[part], "int32"), model)
        return values

    @property
    def num_bits(self) -> int:
        """The number of bits written."""
        return self._stream.num_bits()

    def words(self) -> np.ndarray:
        """Return the written stream, as an array of `<u4`."""
        return self._stream.get_compressed().astype("<u4", copy=False)


class Decoder:
    """Reads the symbols that an `Encoder` wrote, in the same order."""

    def __init__(self, data: bytes | memoryview) -> None:
        words = np.frombuffer(data, "<u4").astype("uint32", copy=False)
        self._stream = constriction.stream.queue.RangeDecoder(words)

    def code(self, model: Any, values: Any, count: int, dtype: Any) -> Any:
        """Return the values that were read. The given values are ignored."""
        values = np.empty(count, dtype)
        for part in parts(count):
            values[part] = self._stream.decode(model, part.stop - part.start)
        return values


Coder: TypeAlias = Encoder | Decoder


def parts(count: int) -> list[slice]:
    """Return short slices, so that copies of them take little memory."""
    return [
        slice(start, min(start + _PART, count))
        for start in range(0, count, _PART)
    ]


def counts_of(symbols: np.ndarray, size: int) -> np.ndarray:
    """Return the histogram of symbols from 0 to `size - 1`."""
    counts = np.zeros(size, "int64")
    for part in parts(len(symbols)):
        counts += np.bincount(symbols[part], minlength=size)
    return counts


def code_symbols(
    coder: Coder, symbols: np.ndarray | None, count: int, size: int
) -> np.ndarray:
    """Write or read symbols from 0 to `size - 1`, with their histogram."""
    dtype = np.min_scalar_type(size - 1)
    if size == 1:
        return np.zeros(count, dtype)
    counts = None if symbols is None else counts_of(symbols, size)
    counts = _code_histogram(coder, counts, size, exact=count > 128 * size)
    model = _Categorical(counts, perfect=False)
    return coder.code(model, symbols, count, dtype)


def _code_histogram(coder, counts, size, exact):
    """Write or read counts: exactly, or rounded to within a third.

    The rounding makes the coded symbols half a percent longer. The length of
    each count in bits is predicted from that of the count before.
    """
    lengths = None if counts is None else bit_lengths(counts)
    distance = np.arange(40) - np.arange(40)[:, np.newaxis]
    seen = 1.0 / (1 + distance**2)
    decoded = np.zeros(size)
    before = 0
    for symbol in range(size):
        length = None if lengths is None else lengths[symbol : symbol + 1]
        model = _Categorical(seen[before], perfect=False)
        length = int(coder.code(model, length, 1, "int32")[0])
        seen[before, length] += 1
        before = length
        decoded[symbol] = 0.75 * 2**length if length else 0
        if exact and length:
            low = None
            if counts is not None:
                low = counts[symbol : symbol + 1] - (1 << (length - 1))
            low = code_bits(coder, low, 1, length - 1)
            decoded[symbol] = int(low[0]) + (1 << (length - 1))
    return decoded


def code_number(coder: Coder, number: int | None, maximum: int) -> int:
    """Write or read one integer from 0 to a maximum.

    Raises:
        ValueError: if the number read is larger, so the file is invalid.
    """
    length = None if number is None else int(number).bit_length()
    length = code_small(coder, length, 64)
    low = None
    if number is not None:
        low = np.array([number - (1 << length >> 1)], "uint64")
    low = code_bits(coder, low, 1, max(length - 1, 0))
    number = int(low[0]) + (1 << length >> 1)
    if number > maximum:
        raise ValueError(f"Expected: at most {maximum}. Received: {number}")
    return number


def code_small(coder: Coder, number: int | None, size: int) -> int:
    """Write or read one integer from 0 to `size - 1`, all equally likely."""
    values = None if number is None else [number]
    return int(coder.code(_Uniform(size), values, 1, "int32")[0])


def code_bits(
    coder: Coder, values: np.ndarray | None, count: int, width: int
) -> np.ndarray:
    """Write or read integers of `width` bits, all equally likely."""
    dtype = np.min_scalar_type((1 << width) - 1)
    decoded = np.zeros(count, dtype) if values is None else values
    for shift in range(0, width, 16):
        size = 1 << min(16, width - shift)
        for part in parts(count):
            low = None
            if values is not None:
                low = values[part] >> values.dtype.type(shift)
                low = low & values.dtype.type(size - 1)
            number = part.stop - part.start
            low = coder.code(_Uniform(size), low, number, dtype)
            if values is None:
                decoded[part] |= low << dtype.type(shift)
    return decoded


def bit_lengths(numbers: Any) -> np.ndarray:
    """Return the number of bits of integers below 2^53."""
    return np.frexp(np.asarray(numbers, "float64"))[1]
