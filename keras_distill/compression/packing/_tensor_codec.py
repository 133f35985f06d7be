"""How a tensor becomes few bytes, and comes back to the bit.

A tensor is where its zeros are, and what its other values are:

    zeros    rows and columns of nothing but zeros are named and left out; in
             the rest, the gap from each value to the next, along a row or a
             column
    values   a codebook and an index for each value, where there are few
             distinct ones; where there are many, the bytes of all values, the
             first of each together, then the second

All of it is integers, and all integers of a file go through one range coder
(the library `constriction`), which needs within a few bytes as many bits as
their histograms say.

Every function here works in both directions: with an `Encoder` it writes the
values it is given and returns them, with a `Decoder` it returns what it reads.
So the two can't disagree. Probabilities are made by sums, products and
quotients of whole numbers only, which come out the same on every machine.
"""

import numpy as np

from keras_distill.compression.packing._symbol_codec import Encoder
from keras_distill.compression.packing._symbol_codec import bit_lengths
from keras_distill.compression.packing._symbol_codec import code_bits
from keras_distill.compression.packing._symbol_codec import code_number
from keras_distill.compression.packing._symbol_codec import code_small
from keras_distill.compression.packing._symbol_codec import code_symbols
from keras_distill.compression.packing._symbol_codec import counts_of
from keras_distill.compression.packing._symbol_codec import parts

# Larger codebooks are no smaller than the values themselves.
_MOST_DISTINCT = 256
# Gaps from here on are written as a length in bits, and their bits.
_LONG_GAP = 512
_DENSE, _BY_ROW, _BY_COLUMN = range(3)


def code_tensor(coder, words, shape, dtype):
    """Write or read a tensor.

    Args:
        coder: `Encoder` or `Decoder`.
        words: the bits of the tensor as unsigned integers of its shape; `None`
            for a `Decoder`.
        shape: its shape.
        dtype: the dtype of `words`.

    Returns:
        The words.
    """
    count = int(np.prod(shape))
    if count == 0:
        return np.zeros(shape, dtype)
    # Units and filters lie along the last axis.
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
    # Where hardly anything is zero, saying where costs more than it saves.
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
    rows = _code_live(coder, None if mask is None else mask.any(1), shape[0])
    columns = _code_live(coder, None if mask is None else mask.any(0), shape[1])
    live = np.ix_(rows, columns)
    lines = (len(rows), len(columns))[:: -1 if by_column else 1]
    values = gaps = count = None
    if words is not None:
        part = words[live].T if by_column else words[live]
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
    words[live] = part.T if by_column else part
    return words


def _without_zeros(line):
    """Return the other values, and how many zeros are before each of them."""
    places = np.flatnonzero(line)
    values = line[places]
    gaps = places.astype(np.promote_types(np.min_scalar_type(line.size), "u2"))
    gaps[1:] -= gaps[:-1].copy() + gaps.dtype.type(1)
    return values, gaps


def _code_live(coder, flags, count):
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
    """Write or read a vector of values, of any kind."""
    if count == 0:
        return np.zeros(0, dtype)
    width = 8 * np.dtype(dtype).itemsize
    book = None if words is None else _codebook(words)
    size = None if book is None else len(book)
    size = code_number(coder, size, _MOST_DISTINCT)
    if size == 0:
        return _code_planes(coder, words, count, dtype)
    book = _code_codebook(coder, book, size, width)
    indices = None if words is None else _places_in(book, words)
    indices = code_symbols(coder, indices, count, size)
    return book.astype(dtype)[indices] if words is None else words


def _codebook(words):
    """Return the distinct values, none if there are too many to list."""
    most = min(_MOST_DISTINCT, max(len(words) // 4, 1))
    book = words[:0]
    if words.itemsize == 1:
        return book
    for part in parts(len(words)):
        book = np.union1d(book, words[part])
        if len(book) > most:
            return words[:0]
    return book


def _places_in(book, words):
    places = np.empty(len(words), "uint8")
    for part in parts(len(words)):
        places[part] = np.searchsorted(book, words[part])
    return places


def _code_codebook(coder, book, size, width):
    halves = None
    if width == 32:
        # Whether half precision holds these floats, as it holds rounded ones.
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


def _code_planes(coder, words, count, dtype):
    """Write or read values byte by byte: exponents repeat, the rest not."""
    decoded = np.zeros(count, dtype) if words is None else words
    for shift in range(0, 8 * np.dtype(dtype).itemsize, 8):
        plane = use = None
        if words is not None:
            plane = _plane(words, shift)
            use = _histogram_pays(plane)
        if code_small(coder, use, 2):
            plane = code_symbols(coder, plane, count, 256)
        else:
            plane = code_bits(coder, plane, count, 8)
        if words is None:
            for part in parts(count):
                decoded[part] |= plane[part].astype(dtype) << dtype.type(shift)
    return decoded


def _plane(words, shift):
    """Return one byte of each word."""
    plane = np.empty(len(words), "uint8")
    for part in parts(len(words)):
        plane[part] = (words[part] >> words.dtype.type(shift)) & 255
    return plane


def _histogram_pays(plane):
    counts = counts_of(plane, 256)
    counts = counts[counts > 0]
    bits = np.sum(counts * np.log2(len(plane) / counts))
    return int(bits + 8 * len(counts) + 64 < 8 * len(plane))


def _ravel(words):
    return None if words is None else words.ravel()
