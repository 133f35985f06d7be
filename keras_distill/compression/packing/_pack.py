"""`pack` and `unpack`: a model as one small file.

    4 bytes   b"KDP" and the version of the format: 2 with assets, 1 without
    4 bytes   checksum of everything that follows
    4 bytes   checksum of the weights, their names, shapes and dtypes
    4 bytes   length of the next part
    ...       the model's config in JSON, compressed with DEFLATE; in version 2,
              an object with the config and the assets (`_assets.py`)
    ...       the weights, in the order of the model's variables
              (`_tensor_codec.py`)

The first checksum detects a truncated or altered file before its content is
used. The second checksum detects errors outside of the file: a version of Keras
that makes other variables from the same config, or a decoder that returns other
values.

Not stored are the names, shapes and dtypes of the weights, which follow from
the config, and the compile settings. No code is stored, and loading runs none.
The file may come from anybody: its config and its weights may take more memory
than the file by a factor only, and this is checked before they take it.
"""

import gc
import json
import os
import pathlib
import struct
import warnings
import zlib

import keras
import numpy as np

from keras_distill import _files
from keras_distill._keras_internals import limited_variables
from keras_distill.compression._models import student_of
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

_MAGIC = b"KDP"
_PLAIN, _WITH_ASSETS = _VERSIONS = (1, 2)
_HEADER = struct.Struct("<3sBI")
_BODY = struct.Struct("<II")
# A dictionary of typical phrases of configs for DEFLATE. With it, the config of
# LeNet-300-100 takes 100 bytes instead of 420. It is part of the format, so
# another text requires another version.
_PHRASES = (pathlib.Path(__file__).parent / "config_phrases.json").read_bytes()
# Limits for a small file, and for each byte of a file. DEFLATE makes the config
# of 300 equal layers 133 times smaller. A model with 99.9 % zeros has about 500
# weights per byte.
_SMALL_CONFIG, _CONFIG_PER_BYTE = 1 << 22, 400
_SMALL_MODEL, _WEIGHTS_PER_BYTE = 1 << 26, 10_000
# A second model with more weights than this does not wait for Python to notice
# that it is garbage. For others, looking for garbage takes longer than packing.
_LARGE = 10_000_000
_MANY_NEGATIVE_ZEROS = 0.05  # as a share of a weight


def pack(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write a model into one small file, without loss.

    Zeros and shared values make the file small. Zeros (`MagnitudePruning`) are
    stored as the gaps between the other weights. Shared values
    (`WeightSharing`) are stored as a codebook and indices. An entropy coder
    stores both with about as many bits as their frequencies require. Other
    weights are stored as bytes, with entropy coding for the exponents. LeNet-
    300-100 with 97 % zeros and 8 values per layer takes less than a hundredth
    of its size.

    The file contains the complete model: its config, its weights of any dtype
    (bit by bit), the statistics of normalizations and the state of random
    generators. It does not contain the compile settings. The file is written
    under a temporary name and then renamed, so `path` never has an incomplete
    model.

    A warning says if many weights are -0.0, as `weight * mask` makes them.
    Their signs are kept and take one bit each.

    Source: Han, Mao and Dally 2016, "Deep Compression", with range coding
    instead of Huffman coding.

    Args:
        model: a built `keras.Model` of any kind that Keras can save; for a
            `Distiller`, its student is packed. It is not changed.
        path: path of the file. An existing file is replaced.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if the model is not built or cannot be built again from its
            config, or if `path` is a folder or in a folder that does not exist.
        RuntimeError: if unpacking the file gives other weights.

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
            "pack. Call the model on a batch, or give it a `keras.Input`."
        )
    config, version = _config_of(model), _PLAIN
    assets = assets_of(model)
    if assets:
        config, version = {"model": config, "assets": assets}, _WITH_ASSETS
    text = _deflate(json.dumps(config, separators=(",", ":")).encode())
    _files.write(path, lambda out: _fill(out, model, text, version))


def _fill(out, model, text, version):
    """Write the file, and test that it can be unpacked."""
    variables = variables_of(model)
    stream, checksum = _encoded(variables)
    parts = (_BODY.pack(checksum, len(text)), text, stream)
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    out.writelines((_HEADER.pack(_MAGIC, version, crc), *parts))
    out.flush()
    # Free the memory first: each takes as much as the model.
    del stream, parts, part
    # The file may be the only copy of the model.
    *_, stream, expected = _parts(pathlib.Path(out.name))
    decoder, size = Decoder(stream), len(stream)
    del stream, _
    found = checksum_of(variables, _decoded(decoder, variables))
    if not found == expected == checksum:
        raise RuntimeError(
            f"Unpacking the model {model.name!r} gives other weights, so the "
            "file was not written. Please report this with the model."
        )
    del decoder
    _check_rebuilt(model, text, version, size)


def unpack(path: str | os.PathLike[str]) -> keras.Model:
    """Return the model from a packed file, on any backend.

    Args:
        path: path of a file that `pack` wrote.

    Returns:
        A `keras.Model`, built and not compiled, with the same class, config and
        weights (bit by bit). Custom layers must be registered, or passed by
        `keras.saving.custom_object_scope`.

    Raises:
        ValueError: if the file was not written by `pack`, was written by a
            later version, is truncated or altered, or if its model cannot be
            built.

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
    model, assets = _model_of(text, version, len(stream), "unpacked")
    variables = variables_of(model)
    try:
        found = checksum_of(variables, _assigned(Decoder(stream), variables))
        if found != expected:
            raise ValueError(f"Expected: {expected:08x}. Received: {found:08x}")
        restore(model, assets)
    except Exception as error:
        raise ValueError(_OTHER.format(path=path)) from error
    return model


_OTHER = (
    "The weights in {path} do not fit the model that this version of Keras "
    "builds from its config, or a custom layer was changed since. Unpack the "
    "file with the versions of Keras and constriction that packed it."
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
            f"{path} has format {version}, but this version of keras-distill "
            f"reads the formats {_VERSIONS}. Use a later version of "
            "keras-distill."
        )
    if zlib.crc32(body) != checksum or len(body) < _BODY.size:
        raise ValueError(
            f"{path} is truncated or altered. Expected: checksum "
            f"{checksum:08x}. "
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
            f"The model {model.name!r} cannot be packed, because it has no "
            "config. Give custom layers and models a `get_config`. "
            f"Received: {error}"
        ) from error


def _encoded(variables):
    """Return the coded weights and their checksum."""
    encoder = Encoder()

    def tensors():
        for variable in variables:
            words = to_words(variable)
            _warn_of_negative_zeros(variable, words)
            code_tensor(encoder, words, words.shape, words.dtype)
            yield words

    checksum = checksum_of(variables, tensors())
    return encoder.words(), checksum


def _warn_of_negative_zeros(variable, words):
    """Warn if a weight was pruned with `weight * mask`, which makes -0.0."""
    if not keras.backend.is_float_dtype(variable.dtype):
        return
    sign = 1 << (8 * words.itemsize - 1)
    count = np.count_nonzero(words == sign)
    if count > _MANY_NEGATIVE_ZEROS * words.size:
        warnings.warn(
            f"{count:,} of {words.size:,} entries of {variable.path!r} are "
            "-0.0. `pack` keeps the signs of zeros, one bit each. Assign "
            "`weight + 0.0`, which is 0.0 in their place, for a smaller file.",
            stacklevel=2,
        )


def _decoded(decoder, variables):
    """Yield the weights in a file, one at a time to save memory."""
    for variable in variables:
        shape, dtype = tuple(variable.shape), words_dtype(variable)
        yield code_tensor(decoder, None, shape, dtype)


def _assigned(decoder, variables):
    """Yield the weights in a file, and assign them to the variables."""
    for variable, words in zip(variables, _decoded(decoder, variables)):
        variable.assign(from_words(variable, words))
        yield words


def _deflate(text):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_PHRASES)
    return deflate.compress(text) + deflate.flush()


def _inflate(data):
    inflate = zlib.decompressobj(-15, zdict=_PHRASES)
    limit = _SMALL_CONFIG + _CONFIG_PER_BYTE * len(data)
    text = inflate.decompress(data, limit)
    if not inflate.eof:
        raise ValueError(
            f"A config of {len(data)} compressed bytes must have at most "
            f"{limit} bytes."
        )
    return text


def _with_zeros(config):
    """Return a config whose initializers are fast and take little memory."""
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


def _model_of(text, version, size, verb, changed=lambda config: config):
    """Return the model of a config, and its assets.

    Args:
        size: the number of bytes of the coded weights.
        verb: "packed" or "unpacked", for the error message.
        changed: a function that returns the config to use.
    """
    try:
        config, assets = json.loads(_inflate(text)), {}
        if version == _WITH_ASSETS:
            config, assets = config["model"], config["assets"]
        with limited_variables(_SMALL_MODEL + _WEIGHTS_PER_BYTE * size):
            model = keras.saving.deserialize_keras_object(
                changed(config), safe_mode=True
            )
        if not isinstance(model, keras.Model):
            raise TypeError(f"Expected: a `keras.Model`. Received: {model!r}")
        return model, assets
    except Exception as error:
        raise ValueError(
            f"The model cannot be {verb}: Keras cannot build a model from its "
            "config. Custom layers must be registered, or passed by "
            "`keras.saving.custom_object_scope`. A `Lambda` has code, which is "
            "not stored: replace it. A config of a newer version of Keras may "
            f"have what Keras {keras.__version__} does not know: update it. "
            f"Received: {error}"
        ) from error


def _check_rebuilt(model, text, version, size):
    """Raise a ValueError if the config gives a model with other weights."""
    # The values do not matter here.
    rebuilt, assets = _model_of(text, version, size, "packed", _with_zeros)
    own = [label(variable) for variable in variables_of(model)]
    new = [label(variable) for variable in variables_of(rebuilt)]
    check_assets(model, rebuilt, assets)
    del rebuilt
    if model.count_params() > _LARGE:
        gc.collect()  # A model has reference cycles, and takes memory.
    if own != new:
        raise ValueError(
            f"The model {model.name!r} cannot be packed: the model built from "
            f"its config has other weights. Expected: {len(own)} weights "
            f"{own[:4]}... Received: {len(new)} weights {new[:4]}... Give a "
            "custom model class a `get_config` and a `build_from_config`."
        )
