"""The weights of a model as unsigned integers, bit by bit."""

import re
import zlib

import keras
import numpy as np


def variables_of(model):
    """Return all state of a model: weights and random generators."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics]


def _is_seed(variable):
    # Each backend keeps this one in another dtype, and reads 32 bits of it.
    return variable.name == "seed_generator_state"


def label(variable):
    """Say what should be the same wherever and however often it is made."""
    name = re.sub(r"_\d+$", "", variable.name)
    dtype = "seed" if _is_seed(variable) else variable.dtype
    return f"{name} {tuple(variable.shape)} {dtype}"


def words_dtype(variable):
    if _is_seed(variable):
        return np.dtype("uint32")
    return np.dtype(f"uint{8 * _dtype_of(variable).itemsize}")


def _dtype_of(variable):
    """Return the dtype that a variable has as an array."""
    one = keras.ops.ravel(variable)[:1]
    return np.asarray(keras.ops.convert_to_numpy(one)).dtype


def to_words(variable):
    values = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    values = values.reshape(tuple(variable.shape))
    if _is_seed(variable):
        return values.astype("int64").astype("uint32")
    return values.view(words_dtype(variable))


def from_words(variable, words):
    dtype = _dtype_of(variable)
    if _is_seed(variable) and dtype.itemsize > 4:
        return words.astype(dtype)
    return np.ascontiguousarray(words).view(dtype).reshape(words.shape)


def checksum_of(variables, tensors):
    checksum = 0
    for variable, words in zip(variables, tensors):
        checksum = zlib.crc32(label(variable).encode(), checksum)
        little = words.astype(words.dtype.newbyteorder("<"), copy=False)
        checksum = zlib.crc32(np.ascontiguousarray(little), checksum)
    return checksum
