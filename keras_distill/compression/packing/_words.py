"""The weights of a model as unsigned integers, bit by bit."""

import re
import zlib
from collections.abc import Iterable

import keras
import numpy as np


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Return all state of a model: weights and random generators."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics]


def _is_seed(variable):
    # Each backend uses another dtype for it, and 32 bits of its value.
    return variable.name == "seed_generator_state"


def label(variable: keras.Variable) -> str:
    """Return a text that is the same for a variable in each rebuilt model."""
    name = re.sub(r"_\d+$", "", variable.name)
    dtype = "seed" if _is_seed(variable) else variable.dtype
    return f"{name} {tuple(variable.shape)} {dtype}"


def words_dtype(variable: keras.Variable) -> np.dtype:
    """Return the dtype of the variable's words."""
    if _is_seed(variable):
        return np.dtype("uint32")
    return np.dtype(f"uint{8 * _dtype_of(variable).itemsize}")


def _dtype_of(variable):
    """Return the NumPy dtype of a variable."""
    one = keras.ops.ravel(variable)[:1]
    return np.asarray(keras.ops.convert_to_numpy(one)).dtype


def to_words(variable: keras.Variable) -> np.ndarray:
    """Return the bits of a variable as unsigned integers."""
    values = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    values = values.reshape(tuple(variable.shape))
    if _is_seed(variable):
        return values.astype("int64").astype("uint32")
    return values.view(words_dtype(variable))


def from_words(variable: keras.Variable, words: np.ndarray) -> np.ndarray:
    """Return the value of a variable from its words."""
    dtype = _dtype_of(variable)
    if _is_seed(variable) and dtype.itemsize > 4:
        return words.astype(dtype)
    return np.ascontiguousarray(words).view(dtype).reshape(words.shape)


def checksum_of(
    variables: Iterable[keras.Variable], tensors: Iterable[np.ndarray]
) -> int:
    """Return a checksum of the words and labels of variables."""
    checksum = 0
    for variable, words in zip(variables, tensors):
        checksum = zlib.crc32(label(variable).encode(), checksum)
        little = words.astype(words.dtype.newbyteorder("<"), copy=False)
        checksum = zlib.crc32(np.ascontiguousarray(little).data, checksum)
    return checksum
