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

import constriction
import numpy as np

_Categorical = constriction.stream.model.Categorical
_Uniform = constriction.stream.model.Uniform

# Larger codebooks are no smaller than the values themselves.
_MOST_DISTINCT = 256
# Gaps from here on are written as a length in bits, and their bits.
_LONG_GAP = 512
_DENSE, _BY_ROW, _BY_COLUMN = range(3)


class Encoder:
    """Writes symbols, most often to find out how many bits they take."""

    def __init__(self):
        self._stream = constriction.stream.queue.RangeEncoder()

    def code(self, model, values, count):
        self._stream.encode(np.asarray(values, "int32"), model)
        return values

    @property
    def num_bits(self):
        return self._stream.num_bits()

    def to_bytes(self):
        return self._stream.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads what an `Encoder` wrote, when asked in the same order."""

    def __init__(self, data):
        words = np.frombuffer(data, "<u4").astype("uint32")
        self._stream = constriction.stream.queue.RangeDecoder(words)

    def code(self, model, values, count):
        return self._stream.decode(model, count)


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
    method = _code_small(coder, method, 3)
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
        places = np.flatnonzero(part)
        values, count = part.ravel()[places], len(places)
        gaps = np.diff(places, prepend=-1) - 1
    count = _code_number(coder, count, lines[0] * lines[1])
    places = np.cumsum(_code_gaps(coder, gaps, count) + 1) - 1
    part = np.zeros(lines[0] * lines[1], dtype)
    part[places] = _code_values(coder, values, count, dtype)
    part = part.reshape(lines)
    words = np.zeros(shape, dtype)
    words[live] = part.T if by_column else part
    return words


def _code_live(coder, flags, count):
    flags = _code_symbols(coder, flags, count, 2)
    return np.flatnonzero(flags)


def _code_gaps(coder, gaps, count):
    if count == 0:
        return np.zeros(0, "int64")
    symbols = size = None
    if gaps is not None:
        lengths = _bit_lengths(gaps)
        first = _bit_lengths(_LONG_GAP)
        symbols = np.where(gaps < _LONG_GAP, gaps, _LONG_GAP + lengths - first)
        size = int(symbols.max()) + 1
    size = _code_number(coder, size, _LONG_GAP + 64)
    symbols = np.array(_code_symbols(coder, symbols, count, size), "int64")
    decoded = symbols.copy()
    for symbol in range(_LONG_GAP, size):
        chosen = symbols == symbol
        width = int(_bit_lengths(_LONG_GAP)) + symbol - _LONG_GAP - 1
        rest = None if gaps is None else gaps[chosen] - (1 << width)
        rest = _code_bits(coder, rest, int(chosen.sum()), width)
        decoded[chosen] = rest.astype("int64") + (1 << width)
    return decoded


def _code_values(coder, words, count, dtype):
    """Write or read a vector of values, of any kind."""
    if count == 0:
        return np.zeros(0, dtype)
    width = 8 * np.dtype(dtype).itemsize
    book = None if words is None else _codebook(words)
    size = None if book is None else len(book)
    size = _code_number(coder, size, _MOST_DISTINCT)
    if size == 0:
        return _code_planes(coder, words, count, dtype)
    book = _code_codebook(coder, book, size, width)
    indices = None if words is None else np.searchsorted(book, words)
    indices = _code_symbols(coder, indices, count, size)
    return book.astype(dtype)[indices]


def _codebook(words):
    """Return the distinct values, none if there are too many to list."""
    if words.itemsize == 1 or (
        len(np.unique(words[: 16 * _MOST_DISTINCT])) > _MOST_DISTINCT
    ):
        return words[:0]
    book = np.unique(words)
    pays = len(book) <= min(_MOST_DISTINCT, len(words) // 4)
    return book if pays or len(book) == 1 else words[:0]


def _code_codebook(coder, book, size, width):
    halves = None
    if width == 32:
        # Whether half precision holds these floats, as it holds rounded ones.
        if book is not None:
            halves = _to_half(book)
        is_half = _code_small(
            coder, None if book is None else halves is not None, 2
        )
        if is_half:
            halves = _code_bits(coder, halves, size, 16).astype("uint16")
            return halves.view("float16").astype("float32").view("uint32")
    return _code_bits(coder, book, size, width)


def _to_half(book):
    floats = book.view("float32")
    with np.errstate(over="ignore", invalid="ignore"):
        halves = floats.astype("float16")
        same = halves.astype("float32").view("uint32") == book
    return halves.view("uint16") if same.all() else None


def _code_planes(coder, words, count, dtype):
    """Write or read values byte by byte: exponents repeat, the rest not."""
    decoded = np.zeros(count, dtype)
    for shift in range(0, 8 * np.dtype(dtype).itemsize, 8):
        plane = use = None
        if words is not None:
            plane = ((words >> shift) & 255).astype("uint8")
            use = _histogram_pays(plane)
        if _code_small(coder, use, 2):
            plane = _code_symbols(coder, plane, count, 256)
        else:
            plane = _code_bits(coder, plane, count, 8)
        decoded |= plane.astype(dtype) << dtype.type(shift)
    return decoded


def _histogram_pays(plane):
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    bits = np.sum(counts * np.log2(len(plane) / counts))
    return int(bits + 8 * len(counts) + 64 < 8 * len(plane))


def _code_symbols(coder, symbols, count, size):
    """Write or read symbols from 0 to `size - 1`, by their histogram."""
    if size == 1:
        return np.zeros(count, "int64")
    counts = None
    if symbols is not None:
        counts = np.bincount(np.asarray(symbols, "int64"), minlength=size)
    counts = _code_histogram(coder, counts, size, exact=count > 128 * size)
    return coder.code(_Categorical(counts, perfect=False), symbols, count)


def _code_histogram(coder, counts, size, exact):
    """Write or read counts: to about a third, or exactly.

    A third costs half a percent of what is coded with it. The length of each
    count in bits is foretold by that of the one before.
    """
    lengths = None if counts is None else _bit_lengths(counts)
    distance = np.arange(40) - np.arange(40)[:, np.newaxis]
    seen = 1.0 / (1 + distance**2)
    decoded = np.zeros(size)
    before = 0
    for symbol in range(size):
        length = None if lengths is None else lengths[symbol : symbol + 1]
        model = _Categorical(seen[before], perfect=False)
        length = int(coder.code(model, length, 1)[0])
        seen[before, length] += 1
        before = length
        decoded[symbol] = 0.75 * 2**length if length else 0
        if exact and length:
            low = None
            if counts is not None:
                low = counts[symbol : symbol + 1] - (1 << (length - 1))
            low = _code_bits(coder, low, 1, length - 1)
            decoded[symbol] = int(low[0]) + (1 << (length - 1))
    return decoded


def _code_number(coder, number, most):
    """Write or read one whole number up to `most`.

    Raises:
        ValueError: if the number read is larger: it was not written here.
    """
    length = None if number is None else int(number).bit_length()
    length = _code_small(coder, length, 64)
    low = None
    if number is not None:
        low = np.array([number - (1 << length >> 1)], "uint64")
    low = _code_bits(coder, low, 1, max(length - 1, 0))
    number = int(low[0]) + (1 << length >> 1)
    if number > most:
        raise ValueError(f"Expected: at most {most}. Received: {number}")
    return number


def _code_small(coder, number, size):
    values = None if number is None else [number]
    return int(coder.code(_Uniform(size), values, 1)[0])


def _code_bits(coder, values, count, width):
    """Write or read numbers of `width` bits, all equally likely."""
    decoded = np.zeros(count, "uint64")
    for shift in range(0, width, 16):
        size = 1 << min(16, width - shift)
        part = None
        if values is not None:
            values = np.asarray(values, "uint64")
            part = (values >> np.uint64(shift)) & np.uint64(size - 1)
        part = coder.code(_Uniform(size), part, count)
        decoded |= np.asarray(part, "uint64") << np.uint64(shift)
    return decoded


def _bit_lengths(numbers):
    """Return how many bits whole numbers below 2^53 have."""
    return np.frexp(np.asarray(numbers, "float64"))[1]


def _ravel(words):
    return None if words is None else words.ravel()
