"""Coding a tensor with few bytes, without loss.

A tensor is stored as the positions of its zeros, and its other values:

    zeros    the rows and columns that are zero everywhere; and in the other
             rows and columns, the gap from each nonzero value to the next,
             along rows or columns
    values   a codebook and an index for each value, if there are few distinct
             values; otherwise the bytes of all values: the first byte of each
             value, then the second byte of each value, and so on

All of these are integers. They are coded with one range coder (of the library
`constriction`), which takes as many bits as the entropy of their histograms,
up to a few bytes.

Each function works in both directions. With an `Encoder`, it writes the given
values and returns them. With a `Decoder`, it returns the values that it reads.
So writing and reading always agree. Probabilities are computed with sums,
products and quotients of integers only, which give the same results on each
machine.
"""

from typing import Any

import numpy as np

from keras_distill.compression.packing._symbol_codec import Coder
from keras_distill.compression.packing._symbol_codec import Encoder
from keras_distill.compression.packing._symbol_codec import bit_lengths
from keras_distill.compression.packing._symbol_codec import code_bits
from keras_distill.compression.packing._symbol_codec import code_number
from keras_distill.compression.packing._symbol_codec import code_small
from keras_distill.compression.packing._symbol_codec import code_symbols
from keras_distill.compression.packing._symbol_codec import counts_of
from keras_distill.compression.packing._symbol_codec import parts

# Larger codebooks save no bits.
_MAX_DISTINCT = 256
# Longer gaps are written as a length in bits, and their bits.
_LONG_GAP = 512
_DENSE, _BY_ROW, _BY_COLUMN = range(3)


def code_tensor(
    coder: Coder,
    words: np.ndarray | None,
    shape: tuple[int, ...],
    dtype: Any,
) -> np.ndarray:
    """Write or read a tensor.

    Args:
        coder: `Encoder` or `Decoder`.
        words: the bits of the tensor as an array of unsigned integers of its
            shape; `None` for a `Decoder`.
        shape: the shape of the tensor.
        dtype: the dtype of `words`.

    Returns:
        The words.
    """
    count = int(np.prod(shape))
    if count == 0:
        return np.zeros(shape, dtype)
    # The last axis has the units or filters.
    table = (count // shape[-1], shape[-1]) if shape else (1, 1)
    method = None
    if words is not None:
        words = words.reshape(table)
        method = _best_method(words)
    method = code_small(coder, method, 3)
    if method == _DENSE:
        words = _code_values(coder, _ravel(words), count, dtype)
    else:
        words = _code_sparse(coder, words, table, dtype, method == _BY_COLUMN)
    return words.reshape(shape)


def _best_method(words):
    density = np.count_nonzero(words) / words.size
    # With few zeros, storing their positions takes more bits than it saves.
    if density == 0 or density > 0.9:
        return _DENSE
    bits = {}
    for method in (_BY_ROW, _BY_COLUMN):
        trial = Encoder()
        by_column = method == _BY_COLUMN
        _code_sparse(trial, words, words.shape, words.dtype, by_column)
        bits[method] = trial.num_bits
    if density > 0.5:
        trial = Encoder()
        _code_values(trial, words.ravel(), words.size, words.dtype)
        bits[_DENSE] = trial.num_bits
    return min(bits, key=bits.get)


def _code_sparse(coder, words, shape, dtype, by_column):
    mask = None if words is None else words != 0
    rows = _code_nonzero(coder, None if mask is None else mask.any(1), shape[0])
    columns = _code_nonzero(
        coder, None if mask is None else mask.any(0), shape[1]
    )
    nonzero = np.ix_(rows, columns)
    lines = (len(rows), len(columns))[:: -1 if by_column else 1]
    values = gaps = count = None
    if words is not None:
        part = words[nonzero].T if by_column else words[nonzero]
        values, gaps = _without_zeros(part.ravel())
        count = len(values)
    count = code_number(coder, count, lines[0] * lines[1])
    gaps = _code_gaps(coder, gaps, count)
    values = _code_values(coder, values, count, dtype)
    if words is not None:
        return words
    part = np.zeros(lines[0] * lines[1], dtype)
    gaps += 1
    part[np.cumsum(gaps) - 1] = values
    part = part.reshape(lines)
    words = np.zeros(shape, dtype)
    words[nonzero] = part.T if by_column else part
    return words


def _without_zeros(line):
    """Return the nonzero values, and the number of zeros before each value."""
    positions = np.flatnonzero(line)
    values = line[positions]
    gaps = positions.astype(
        np.promote_types(np.min_scalar_type(line.size), "u2")
    )
    gaps[1:] -= gaps[:-1].copy() + gaps.dtype.type(1)
    return values, gaps


def _code_nonzero(coder, flags, count):
    """Write or read which rows or columns are not zero everywhere."""
    flags = code_symbols(coder, flags, count, 2)
    return np.flatnonzero(flags)


def _code_gaps(coder, gaps, count):
    if count == 0:
        return np.zeros(0, "int64")
    symbols = size = None
    first = int(bit_lengths(_LONG_GAP))
    if gaps is not None:
        symbols = np.minimum(gaps, _LONG_GAP).astype("uint16")
        is_long = np.flatnonzero(symbols == _LONG_GAP)
        lengths = bit_lengths(gaps[is_long])
        symbols[is_long] = _LONG_GAP + lengths - first
        size = int(symbols.max()) + 1
    size = code_number(coder, size, _LONG_GAP + 64)
    symbols = code_symbols(coder, symbols, count, size)
    decoded = symbols.astype("int64") if gaps is None else gaps
    for symbol in range(_LONG_GAP, size):
        chosen = np.flatnonzero(symbols == symbol)
        width = first + symbol - _LONG_GAP - 1
        rest = None if gaps is None else gaps[chosen] - (1 << width)
        rest = code_bits(coder, rest, len(chosen), width)
        if gaps is None:
            decoded[chosen] = rest.astype("int64") + (1 << width)
    return decoded


def _code_values(coder, words, count, dtype):
    """Write or read a vector of values, with a codebook or as bytes."""
    if count == 0:
        return np.zeros(0, dtype)
    width = 8 * np.dtype(dtype).itemsize
    book = None if words is None else _codebook(words)
    size = None if book is None else len(book)
    size = code_number(coder, size, _MAX_DISTINCT)
    if size == 0:
        return _code_bytes(coder, words, count, dtype)
    book = _code_codebook(coder, book, size, width)
    indices = None if words is None else _indices_in(book, words)
    indices = code_symbols(coder, indices, count, size)
    return book.astype(dtype)[indices] if words is None else words


def _codebook(words):
    """Return the distinct values, or none if there are too many."""
    maximum = min(_MAX_DISTINCT, max(len(words) // 4, 1))
    book = words[:0]
    if words.itemsize == 1:
        return book
    for part in parts(len(words)):
        book = np.union1d(book, words[part])
        if len(book) > maximum:
            return words[:0]
    return book


def _indices_in(book, words):
    indices = np.empty(len(words), "uint8")
    for part in parts(len(words)):
        indices[part] = np.searchsorted(book, words[part])
    return indices


def _code_codebook(coder, book, size, width):
    halves = None
    if width == 32:
        # Whether the values are exact in float16. Rounded values may be.
        if book is not None:
            halves = _to_half(book)
        is_half = code_small(
            coder, None if book is None else halves is not None, 2
        )
        if is_half:
            halves = code_bits(coder, halves, size, 16).astype("uint16")
            return halves.view("float16").astype("float32").view("uint32")
    return code_bits(coder, book, size, width)


def _to_half(book):
    floats = book.view("float32")
    with np.errstate(over="ignore", invalid="ignore"):
        halves = floats.astype("float16")
        same = halves.astype("float32").view("uint32") == book
    return halves.view("uint16") if same.all() else None


def _code_bytes(coder, words, count, dtype):
    """Write or read values byte by byte.

    A histogram saves bits for the bytes with exponents, which repeat.
    """
    decoded = np.zeros(count, dtype) if words is None else words
    for shift in range(0, 8 * np.dtype(dtype).itemsize, 8):
        byte_plane = use_histogram = None
        if words is not None:
            byte_plane = _byte_of(words, shift)
            use_histogram = _histogram_saves_bits(byte_plane)
        if code_small(coder, use_histogram, 2):
            byte_plane = code_symbols(coder, byte_plane, count, 256)
        else:
            byte_plane = code_bits(coder, byte_plane, count, 8)
        if words is None:
            for part in parts(count):
                decoded[part] |= byte_plane[part].astype(dtype) << dtype.type(
                    shift
                )
    return decoded


def _byte_of(words, shift):
    """Return one byte of each word."""
    byte_plane = np.empty(len(words), "uint8")
    for part in parts(len(words)):
        byte_plane[part] = (words[part] >> words.dtype.type(shift)) & 255
    return byte_plane


def _histogram_saves_bits(byte_plane):
    counts = counts_of(byte_plane, 256)
    counts = counts[counts > 0]
    bits = np.sum(counts * np.log2(len(byte_plane) / counts))
    return int(bits + 8 * len(counts) + 64 < 8 * len(byte_plane))


def _ravel(words):
    return None if words is None else words.ravel()
