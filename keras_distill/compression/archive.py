"""`pack` and `unpack`: a model as one small file.

    4 bytes   b"KDP" and the version of the format
    4 bytes   checksum of all that follows
    4 bytes   checksum of the weights, their names, shapes and dtypes
    4 bytes   length of the next part
    ...       the model's config, JSON, deflated
    ...       the weights, in the order of the model's variables (`codec.py`)

The first checksum finds a file that was cut or altered, before anything of it
is believed. The second one finds what no look at the file can: a Keras that
makes other variables of the same config, or a decoder that reads other values.

Left out: names, shapes and dtypes of the weights, which the config gives; and
how the model was compiled. No code is stored and none is run.
"""

import json
import pathlib
import re
import struct
import zlib

import keras
import numpy as np

from keras_distill import _files
from keras_distill.compression.codec import Decoder
from keras_distill.compression.codec import Encoder
from keras_distill.compression.codec import code_tensor
from keras_distill.compression.kernels import student_of

_MAGIC = b"KDP"
_VERSION = 1
_HEADER = struct.Struct("<3sBI")
_BODY = struct.Struct("<II")
# Deflate finds in here, ready-made, what configs are full of; so the three
# layers of LeNet-300-100 take 100 bytes instead of 420. Part of the format:
# another text means another version.
_PHRASES = (pathlib.Path(__file__).parent / "config_phrases.json").read_bytes()
# A model of a thousand layers has a config of a megabyte.
_MOST_CONFIG = 1 << 28


def pack(model, path):
    """Write a model into one small file, lossless to the bit.

    What training has left is what makes it small: zeros (`MagnitudePruning`)
    are stored as the gaps between the other weights, few distinct values
    (`WeightSharing`) as a codebook and its indices, and all of these by an
    entropy coder in about as many bits as their frequencies ask for. Other
    weights are stored as they are, the bytes of their exponents coded. LeNet-
    300-100 with 97 % zeros and 8 values per layer takes less than a hundredth.

    Everything of the model is in the file: its config, its weights of any
    dtype, bit by bit, the statistics of normalisations and the state of random
    generators. Not in it is how it was compiled. It is written under another
    name and then renamed, so that `path` never holds half a model.

    Source: Han, Mao and Dally 2016, "Deep Compression"; in place of its Huffman
    codes, range coding.

    Args:
        model: a built `keras.Model`, of any kind that Keras can save; of a
            `Distiller`, the student is packed. It is not changed.
        path: where to write. A file that is there is replaced.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if the model is not built, or can't be made again from its
            config, or `path` is a folder, or lies in one that does not exist.
        RuntimeError: if the weights, read again, are not those of the model.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill.compression import pack, unpack

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"),
         keras.layers.Dense(3)]
    )
    pack(model, "model.packed")
    again = unpack("model.packed")
    for old, new in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(old, new)
    ```
    """
    path = _files.writable(path)
    model = student_of(model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a `keras.Model`. Received: {model!r}")
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built, so it has no weights to "
            "pack. Call it on a batch, or give it a `keras.Input`."
        )
    config = _deflate(_config_of(model))
    variables = _variables(model)
    tensors = [_to_words(variable) for variable in variables]
    # Made again here, a model that can't be unpacked is found in time.
    _check_same(model, _variables(_model_of(config, "packed")))
    encoder = Encoder()
    for words in tensors:
        code_tensor(encoder, words, words.shape, words.dtype)
    stream = encoder.to_bytes()
    checksum = _checksum(variables, tensors)
    # Who packs a model may keep nothing else of it.
    if _checksum(variables, _decoded(stream, variables)) != checksum:
        raise RuntimeError(
            f"The weights of {model.name!r} don't come back as they went in, "
            "so nothing was written. Please report it, with the model."
        )
    body = _BODY.pack(checksum, len(config)) + config + stream
    header = _HEADER.pack(_MAGIC, _VERSION, zlib.crc32(body))
    _files.write(path, lambda out: out.write(header + body))


def unpack(path):
    """Return the model that `pack` wrote, on whatever backend is active.

    Args:
        path: a file that `pack` wrote.

    Returns:
        A `keras.Model`, built and not compiled, of the same class and config,
        its weights equal to the bit. Layers of one's own must be registered, or
        be given by `keras.saving.custom_object_scope`.

    Raises:
        ValueError: if the file was not written by `pack`, or by a later
            version, or was cut or altered, or if its model can't be made here.

    Example:

    ```python
    import keras
    from keras_distill.compression import pack, unpack

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    pack(model, "model.packed")
    unpack("model.packed").summary()
    ```
    """
    path = pathlib.Path(path)
    config, stream, expected = _parts(path.read_bytes(), path)
    model = _model_of(config, "unpacked")
    variables = _variables(model)
    try:
        tensors = _decoded(stream, variables)
    except Exception as error:
        raise ValueError(_OTHER.format(path=path)) from error
    if _checksum(variables, tensors) != expected:
        raise ValueError(_OTHER.format(path=path))
    for variable, words in zip(variables, tensors):
        variable.assign(_from_words(variable, words))
    return model


_OTHER = (
    "The weights in {path} don't belong to the model that this version of "
    "Keras makes of the config in it, or a layer of your own has changed since."
    " Unpack the file with the versions of Keras and of constriction that "
    "packed it."
)


def _parts(data, path):
    """Return the config, the coded weights and their checksum."""
    if len(data) < _HEADER.size or data[:3] != _MAGIC:
        raise ValueError(
            f"{path} is not a packed model: it does not begin with {_MAGIC!r}. "
            "Expected: a file that `pack` wrote."
        )
    _, version, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if version != _VERSION:
        raise ValueError(
            f"{path} has format {version}, and this version of keras-distill "
            f"reads format {_VERSION}. Expected: a file that it wrote."
        )
    if zlib.crc32(body) != checksum or len(body) < _BODY.size:
        raise ValueError(
            f"{path} was cut or altered. Expected: checksum {checksum:08x}. "
            f"Received: {zlib.crc32(body):08x} in {len(data)} bytes. Copy the "
            "file again."
        )
    expected, length = _BODY.unpack_from(body)
    end = _BODY.size + length
    return body[_BODY.size : end], body[end:], expected


def _config_of(model):
    try:
        config = keras.saving.serialize_keras_object(model)
        config.pop("compile_config", None)
        return json.dumps(config, separators=(",", ":")).encode()
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The model {model.name!r} can't be packed, because it has no "
            f"config. Received: {error}"
        ) from error


def _decoded(stream, variables):
    decoder = Decoder(stream)
    return [
        code_tensor(decoder, None, tuple(v.shape), _words_dtype(v))
        for v in variables
    ]


def _deflate(text):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_PHRASES)
    return deflate.compress(text) + deflate.flush()


def _inflate(data):
    inflate = zlib.decompressobj(-15, zdict=_PHRASES)
    return inflate.decompress(data, _MOST_CONFIG)


def _model_of(config, done):
    try:
        return keras.saving.deserialize_keras_object(
            json.loads(_inflate(config)), safe_mode=True
        )
    except Exception as error:
        raise ValueError(
            f"The model can't be {done}: Keras does not make a model of its "
            "config. Layers of your own must be registered, or be given by "
            "`keras.saving.custom_object_scope`, and a `Lambda` holds code, "
            f"which is not stored. Received: {error}"
        ) from error


def _variables(model):
    """Return all state of a model: weights and random generators."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics]


def _check_same(model, made):
    own = [_label(variable) for variable in _variables(model)]
    new = [_label(variable) for variable in made]
    if own != new:
        raise ValueError(
            f"The model {model.name!r} can't be packed: made again from its "
            f"config it has other weights. Expected: {len(own)} weights "
            f"{own[:4]}... Received: {len(new)} weights {new[:4]}... Give a "
            "model of your own class `get_config` and `build_from_config`."
        )


def _is_seed(variable):
    # Each backend keeps this one in another dtype, and reads 32 bits of it.
    return variable.name == "seed_generator_state"


def _label(variable):
    """Say what should be the same wherever and however often it is made."""
    name = re.sub(r"_\d+$", "", variable.name)
    dtype = "seed" if _is_seed(variable) else variable.dtype
    return f"{name} {tuple(variable.shape)} {dtype}"


def _words_dtype(variable):
    if _is_seed(variable):
        return np.dtype("uint32")
    size = np.asarray(keras.ops.convert_to_numpy(variable)).dtype.itemsize
    return np.dtype(f"uint{8 * size}")


def _to_words(variable):
    values = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    values = values.reshape(tuple(variable.shape))
    if _is_seed(variable):
        return values.astype("int64").astype("uint32")
    return values.view(_words_dtype(variable))


def _from_words(variable, words):
    dtype = np.asarray(keras.ops.convert_to_numpy(variable)).dtype
    if _is_seed(variable) and dtype.itemsize > 4:
        return words.astype(dtype)
    return np.ascontiguousarray(words).view(dtype).reshape(words.shape)


def _checksum(variables, tensors):
    checksum = 0
    for variable, words in zip(variables, tensors):
        checksum = zlib.crc32(_label(variable).encode(), checksum)
        little = words.astype(words.dtype.newbyteorder("<"))
        checksum = zlib.crc32(little.tobytes(), checksum)
    return checksum
