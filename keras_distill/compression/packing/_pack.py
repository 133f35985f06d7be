"""`pack` and `unpack`: a model as one small file.

    4 bytes   b"KDP" and the version of the format: 2 with, 1 without assets
    4 bytes   checksum of all that follows
    4 bytes   checksum of the weights, their names, shapes and dtypes
    4 bytes   length of the next part
    ...       the model's config, JSON, deflated; in version 2, an object of it
              and of the assets (`archive_assets.py`)
    ...       the weights, in the order of the model's variables (`codec.py`)

The first checksum finds a file that was cut or altered, before anything of it
is believed. The second one finds what no look at the file can: a Keras that
makes other variables of the same config, or a decoder that reads other values.

Left out: names, shapes and dtypes of the weights, which the config gives; and
how the model was compiled. No code is stored and none is run.
"""

import gc
import json
import pathlib
import struct
import zlib

import keras

from keras_distill import _files
from keras_distill.compression.packing._assets import assets_of
from keras_distill.compression.packing._assets import check_assets
from keras_distill.compression.packing._assets import restore
from keras_distill.compression.packing._symbol_codec import Decoder
from keras_distill.compression.packing._symbol_codec import Encoder
from keras_distill.compression.packing._tensor_codec import code_tensor
from keras_distill.compression.packing._words import checksum_of
from keras_distill.compression.packing._words import from_words
from keras_distill.compression.packing._words import label
from keras_distill.compression.packing._words import to_words
from keras_distill.compression.packing._words import variables_of
from keras_distill.compression.packing._words import words_dtype
from keras_distill.compression.weights._kernels import student_of

_MAGIC = b"KDP"
_PLAIN, _WITH_ASSETS = _VERSIONS = (1, 2)
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
    config, version = _config_of(model), _PLAIN
    assets = assets_of(model)
    if assets:
        config, version = {"model": config, "assets": assets}, _WITH_ASSETS
    text = _deflate(json.dumps(config, separators=(",", ":")).encode())
    _files.write(path, lambda out: _fill(out, model, text, version))


def _fill(out, model, text, version):
    """Write the file, and look whether it can be unpacked."""
    variables = variables_of(model)
    stream, checksum = _encoded(variables)
    parts = (_BODY.pack(checksum, len(text)), text, stream)
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    out.writelines((_HEADER.pack(_MAGIC, version, crc), *parts))
    out.flush()
    # One after the other: each takes as much memory as the model.
    del stream, parts, part
    # The file may be the only copy of the model.
    *_, stream, expected = _parts(pathlib.Path(out.name))
    decoder = Decoder(stream)
    del stream, _
    found = checksum_of(variables, _decoded(decoder, variables))
    if not found == expected == checksum:
        raise RuntimeError(
            f"The weights of {model.name!r} don't come back as they went in, "
            "so nothing was written. Please report it, with the model."
        )
    del decoder
    _check_same(model, text, version)


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
    version, text, stream, expected = _parts(path)
    model, assets = _model_of(text, version, "unpacked")
    variables = variables_of(model)
    try:
        found = checksum_of(variables, _assigned(Decoder(stream), variables))
    except Exception as error:
        raise ValueError(_OTHER.format(path=path)) from error
    if found != expected:
        raise ValueError(_OTHER.format(path=path))
    restore(model, assets)
    return model


_OTHER = (
    "The weights in {path} don't belong to the model that this version of "
    "Keras makes of the config in it, or a layer of your own has changed since."
    " Unpack the file with the versions of Keras and of constriction that "
    "packed it."
)


def _parts(path):
    """Return the version, config, coded weights and their checksum."""
    data = path.read_bytes()
    if len(data) < _HEADER.size or data[:3] != _MAGIC:
        raise ValueError(
            f"{path} is not a packed model: it does not begin with {_MAGIC!r}. "
            "Expected: a file that `pack` wrote."
        )
    _, version, checksum = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    if version not in _VERSIONS:
        raise ValueError(
            f"{path} has format {version}, and this version of keras-distill "
            f"reads formats {_VERSIONS}. Expected: a file that it wrote."
        )
    if zlib.crc32(body) != checksum or len(body) < _BODY.size:
        raise ValueError(
            f"{path} was cut or altered. Expected: checksum {checksum:08x}. "
            f"Received: {zlib.crc32(body):08x} in {len(data)} bytes. Copy the "
            "file again."
        )
    expected, length = _BODY.unpack_from(body)
    end = _BODY.size + length
    return version, body[_BODY.size : end], body[end:], expected


def _config_of(model):
    try:
        config = keras.saving.serialize_keras_object(model)
        config.pop("compile_config", None)
        json.dumps(config)
        return config
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The model {model.name!r} can't be packed, because it has no "
            f"config. Received: {error}"
        ) from error


def _encoded(variables):
    """Return the coded weights and their checksum."""
    encoder = Encoder()

    def tensors():
        for variable in variables:
            words = to_words(variable)
            code_tensor(encoder, words, words.shape, words.dtype)
            yield words

    checksum = checksum_of(variables, tensors())
    return encoder.words(), checksum


def _decoded(decoder, variables):
    """Yield the weights in a file, one by one: each takes memory."""
    for variable in variables:
        shape, dtype = tuple(variable.shape), words_dtype(variable)
        yield code_tensor(decoder, None, shape, dtype)


def _assigned(decoder, variables):
    """Do as `_decoded`, and give the weights to the variables."""
    for variable, words in zip(variables, _decoded(decoder, variables)):
        variable.assign(from_words(variable, words))
        yield words


def _deflate(text):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_PHRASES)
    return deflate.compress(text) + deflate.flush()


def _inflate(data):
    inflate = zlib.decompressobj(-15, zdict=_PHRASES)
    return inflate.decompress(data, _MOST_CONFIG)


def _with_zeros(config):
    """Return a config with an initializer that takes no time or memory."""
    if isinstance(config, list):
        return [_with_zeros(part) for part in config]
    if not isinstance(config, dict):
        return config
    return {
        key: keras.initializers.serialize(keras.initializers.Zeros())
        if key.endswith("_initializer") and isinstance(part, dict)
        else _with_zeros(part)
        for key, part in config.items()
    }


def _model_of(text, version, done, changed=lambda config: config):
    """Return the model of a config, and its assets."""
    try:
        config, assets = json.loads(_inflate(text)), {}
        if version == _WITH_ASSETS:
            config, assets = config["model"], config["assets"]
        model = keras.saving.deserialize_keras_object(
            changed(config), safe_mode=True
        )
        return model, assets
    except Exception as error:
        raise ValueError(
            f"The model can't be {done}: Keras does not make a model of its "
            "config. Layers of your own must be registered, or be given by "
            "`keras.saving.custom_object_scope`, and a `Lambda` holds code, "
            f"which is not stored. Received: {error}"
        ) from error


def _check_same(model, text, version):
    # Whatever the values, so those that take least to make.
    made, assets = _model_of(text, version, "packed", _with_zeros)
    own = [label(variable) for variable in variables_of(model)]
    new = [label(variable) for variable in variables_of(made)]
    check_assets(model, made, assets)
    del made
    gc.collect()  # A model is held by itself, and this one takes memory.
    if own != new:
        raise ValueError(
            f"The model {model.name!r} can't be packed: made again from its "
            f"config it has other weights. Expected: {len(own)} weights "
            f"{own[:4]}... Received: {len(new)} weights {new[:4]}... Give a "
            "model of your own class `get_config` and `build_from_config`."
        )
