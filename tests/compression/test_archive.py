"""A packed model is restored bit by bit, or the file is refused."""

import base64
import json
import os
import re
import subprocess
import textwrap
import zlib

import hypothesis
import keras
import numpy as np
import pytest
from common import BACKEND
from common import IS_KERAS_3_14
from common import cnn
from common import examples
from common import images
from common import mlp
from common import to_numpy
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import layers
from keras import ops
from programs import command
from programs import environment

from keras_distill.compression import pack
from keras_distill.compression import unpack
from keras_distill.compression.packing import _assets
from keras_distill.compression.packing import _pack
from keras_distill.compression.packing import _symbol_codec
from keras_distill.compression.packing import _tensor_codec

pytestmark = pytest.mark.any_backend


def bits_of(model):
    """Dtype, shape and bytes of all state of a model, without metrics."""
    metrics = {id(v) for v in model.metrics_variables}
    arrays = [to_numpy(v) for v in model.variables if id(v) not in metrics]
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays]


def round_trip(words):
    encoder = _symbol_codec.Encoder()
    _tensor_codec.code_tensor(encoder, words, words.shape, words.dtype)
    data = encoder.words().tobytes()
    decoder = _symbol_codec.Decoder(data)
    again = _tensor_codec.code_tensor(decoder, None, words.shape, words.dtype)
    assert again.dtype == words.dtype and again.shape == words.shape
    np.testing.assert_array_equal(again, words)
    return len(data)


@st.composite
def tensors(draw):
    """Tensors with any bits, shape, sparsity and number of values."""
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "u4", "u8"])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = generator.random(shape) < draw(st.sampled_from([0, 0.02, 0.5, 1]))
    values = generator.integers(0, 2 ** (8 * dtype.itemsize) - 1, 300, dtype)
    values = values[: draw(st.sampled_from([1, 2, 7, 300]))]
    return np.asarray(generator.choice(values, shape) * kept, dtype)


@hypothesis.given(tensors())
@hypothesis.settings(max_examples=examples(200))
def test_any_tensor_comes_back(words):
    round_trip(words)


@hypothesis.given(
    hnp.arrays("uint32", hnp.array_shapes(max_dims=3, max_side=9))
)
def test_any_bits_come_back(words):
    round_trip(words)


@pytest.mark.parametrize("density", [0.0001, 0.0005, 0.002, 0.005])
def test_long_gaps_come_back(density):
    """Gaps of hundreds to thousands of zeros, in each length of bits."""
    generator = np.random.default_rng(0)
    places = generator.random((1500, 1000)) < density
    words = places * generator.integers(1, 5, places.shape, "uint32")
    assert np.diff(np.flatnonzero(words)).max() > 512
    round_trip(words.astype("uint32"))


@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0), (1,), (64, 10), (3, 3, 4, 8)]
)
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_one_value_takes_no_room(shape, value):
    assert round_trip(np.full(shape, value, "uint32")) <= 16


def test_zeros_far_apart():
    words = np.zeros((1000, 1000), "uint32")
    words[[3, 500, 999], [7, 0, 999]] = [1, 2, 3]
    assert round_trip(words) < 400
    words = np.zeros(10**6, "uint32")
    words[[0, 600_000, 10**6 - 1]] = 5
    assert round_trip(words) < 400


def test_close_to_the_entropy():
    generator = np.random.default_rng(0)
    places = generator.random((400, 300)) < 0.03
    values = generator.integers(1, 9, places.shape).astype("float32")
    words = (places * values).view("uint32")
    share = places.mean()
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    limit = (entropy * places.size + 3 * places.sum()) / 8
    assert round_trip(words) < 1.04 * limit


def test_exponents_are_coded_where_nothing_else_helps():
    words = np.random.default_rng(0).normal(size=10_000).astype("float32")
    assert round_trip(words.view("uint32")) < 0.85 * words.nbytes


def pruned_and_shared_lenet():
    """LeNet-300-100 with 98 % zeros and 8 values per layer, not trained."""
    model = keras.Sequential(
        [keras.Input((784,))]
        + [keras.layers.Dense(units, "relu") for units in (300, 100)]
        + [keras.layers.Dense(10)]
    )
    generator = np.random.default_rng(0)
    for layer in model.layers:
        shape = layer.kernel.shape
        # As in Deep Compression, pixels at the border are not used.
        density = 0.04 * generator.random((shape[0], 1))
        places = generator.random(shape) < density
        values = generator.choice(np.linspace(-0.2, 0.2, 8), shape)
        biases = generator.choice(np.linspace(-0.1, 0.1, 16), shape[1])
        layer.set_weights([np.where(places, values, 0), biases])
    return model


def test_lenet_is_a_fraction_of_what_zlib_makes_of_it(tmp_path):
    model = pruned_and_shared_lenet()
    pack(model, tmp_path / "lenet")
    packed = (tmp_path / "lenet").stat().st_size
    raw = b"".join(w.tobytes() for w in model.get_weights())
    deflated = len(zlib.compress(raw, 9))
    print(f"raw {len(raw)}, zlib -9 {deflated}, packed {packed} bytes")
    assert packed < len(raw) / 140
    assert packed < deflated / 2
    assert bits_of(unpack(tmp_path / "lenet")) == bits_of(model)


def stateful():
    """All kinds of state: statistics, generators, shared and nested layers."""
    inner = mlp(4, inputs=4, classes=4, name="inner")
    shared = keras.layers.Dense(4)
    inputs = keras.Input((8, 8, 1))
    x = cnn(4, classes=4)(inputs)
    x = keras.layers.Dropout(0.1, seed=5)(shared(inner(shared(x))))
    return keras.Model(inputs, {"a": x, "b": keras.layers.Softmax()(x)})


def test_all_state_comes_back(tmp_path):
    x, _ = images()
    model = stateful()
    model(x, training=True)  # moves statistics and generators
    model.compile("adam", "mse", metrics=["mae"])
    pack(model, tmp_path / "model")
    again = unpack(tmp_path / "model")
    assert bits_of(again) == bits_of(model)
    # As JSON, because Keras loads tuples as lists.
    configs = [json.dumps(m.get_config()) for m in (again, model)]
    assert configs[0] == configs[1]
    assert not again.compiled
    for name, value in model.predict(x, verbose=0).items():
        np.testing.assert_array_equal(again.predict(x, verbose=0)[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_bit_of_a_float_counts(dtype, tmp_path):
    model = keras.Sequential(
        [keras.Input((40,)), keras.layers.Dense(20, dtype=dtype)]
    )
    kernel = model.layers[0].kernel
    values = np.array(to_numpy(kernel))
    words = values.view(f"uint{8 * values.itemsize}")
    sign = 1 << (8 * values.itemsize - 1)
    infinity = np.array(np.inf, values.dtype).view(words.dtype)
    # Zeros of both signs, the smallest numbers, infinities and NaN.
    words.flat[:8] = [0, sign, 1, sign | 1, infinity, infinity | sign, 0, 0]
    values.flat[6:8] = np.nan
    kernel.assign(values)
    pack(model, tmp_path / "model")
    assert bits_of(unpack(tmp_path / "model")) == bits_of(model)
    # Backends may replace a NaN by another one.
    numbers = ~np.isnan(values.astype("float32"))
    assert to_numpy(kernel)[numbers].tobytes() == values[numbers].tobytes()


def test_a_warning_says_what_negative_zeros_cost(tmp_path):
    model = mlp(64)
    kernel = model.layers[0].kernel
    values, path = to_numpy(kernel), tmp_path / "model"
    kernel.assign(values * (np.abs(values) > np.quantile(np.abs(values), 0.8)))
    with pytest.warns(UserWarning, match=r"entries of '.*kernel' are -0\.0"):
        pack(model, path)
    size = path.stat().st_size
    kernel.assign(to_numpy(kernel) + 0.0)
    pack(model, path)  # Other warnings are errors.
    assert path.stat().st_size < size - values.size / 16


def test_integers_come_back(tmp_path):
    model = mlp(8)
    for layer in model.layers:
        layer.quantize("int8")
    pack(model, tmp_path / "model")
    again = unpack(tmp_path / "model")
    assert bits_of(again) == bits_of(model)
    assert str(to_numpy(again.layers[0].kernel).dtype) == "int8"


WORDS = np.array([["a b c"], ["c b"], ["b \u00e9"]])


def looking_up(layer, data=None, dtype="string"):
    if data is not None:
        layer.adapt(data)
    inputs = keras.Input((1,), dtype=dtype)
    return keras.Model(inputs, layer(inputs))


def nested():
    inputs = keras.Input((1,), dtype="string")
    words = layers.TextVectorization(output_sequence_length=4)
    embedded = layers.Embedding(9, 2)(looking_up(words, WORDS)(inputs))
    return keras.Model(inputs, layers.Dense(3)(embedded))


PREPROCESSING = {
    "words": lambda: looking_up(
        layers.TextVectorization(output_sequence_length=4), WORDS
    ),
    "given words": lambda: looking_up(
        layers.TextVectorization(vocabulary=["b", "c"])
    ),
    "tf_idf": lambda: looking_up(
        layers.TextVectorization(output_mode="tf_idf"), WORDS
    ),
    "nested": nested,
    "strings": lambda: looking_up(
        layers.StringLookup(output_mode="one_hot"), WORDS
    ),
    "strings tf_idf": lambda: looking_up(
        layers.StringLookup(output_mode="tf_idf"), WORDS
    ),
    "integers": lambda: looking_up(
        layers.IntegerLookup(), np.array([[5], [7], [5]]), "int64"
    ),
    "hashing": lambda: looking_up(layers.Hashing(5)),
    "normalization": lambda: looking_up(
        layers.Normalization(), np.array([[1.0], [4.0]]), "float32"
    ),
    "discretization": lambda: looking_up(
        layers.Discretization(num_bins=3), np.arange(9.0)[:, None], "float32"
    ),
    "categories": lambda: looking_up(
        layers.CategoryEncoding(8, output_mode="one_hot"), None, "int32"
    ),
}


def run(model, x):
    """Call the layers one by one: JAX and PyTorch have no strings."""
    for layer in model.layers[1:]:
        x = run(layer, x) if isinstance(layer, keras.Model) else layer(x)
    return ops.convert_to_tensor(x)


@pytest.mark.parametrize("kind", PREPROCESSING)
def test_what_preprocessing_has_learned_comes_back(kind, tmp_path):
    import tensorflow as tf

    model = PREPROCESSING[kind]()
    x = np.array([[5], [7], [2]])
    if model.inputs[0].dtype == "string":
        x = tf.constant([["b c \u00e9"], ["b"], ["x"]])
    pack(model, tmp_path / "model")
    again = unpack(tmp_path / "model")
    expected, output = (to_numpy(run(m, x)) for m in (model, again))
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(output, expected)
    assert bits_of(again) == bits_of(model)
    # An unpacked model can be packed again.
    pack(again, tmp_path / "again")
    files = [(tmp_path / name).read_bytes() for name in ("model", "again")]
    assert files[0] == files[1]


def test_a_vocabulary_that_does_not_come_back_is_refused(tmp_path):
    lookup = layers.StringLookup()
    lookup.set_vocabulary(["one", "two\nlines"])
    with pytest.raises(
        ValueError, match="another vocabulary of 'string_lookup'"
    ):
        pack(looking_up(lookup), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_assets_stay_in_their_folder(tmp_path):
    for name in ("../away.txt", "/away.txt"):
        with pytest.raises(ValueError, match="must not leave its folder"):
            _assets._write_files(tmp_path, {name: "text"})


@keras.saving.register_keras_serializable(package="test")
class Table(layers.Layer):
    """Saves bytes that are not text, in a folder."""

    table = b""

    def call(self, inputs):
        return inputs * len(self.table)

    def save_assets(self, folder):
        os.mkdir(os.path.join(folder, "inner"))
        with open(os.path.join(folder, "inner", "table"), "wb") as file:
            file.write(self.table)

    def load_assets(self, folder):
        with open(os.path.join(folder, "inner", "table"), "rb") as file:
            self.table = file.read()


def test_assets_of_any_layer_come_back(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Table(), layers.Dense(2)])
    model.layers[0].table = bytes(range(256))
    pack(model, tmp_path / "model")
    assert (tmp_path / "model").read_bytes()[3] == 2  # which 1 can't read
    again = unpack(tmp_path / "model")
    assert again.layers[0].table == bytes(range(256))


def test_long_tensors_come_back_in_parts(monkeypatch):
    """The bytes do not depend on the length of the parts."""
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(50, 60)).astype("float32").view("uint32")
    few = generator.choice(dense.ravel()[:9], (50, 60))
    places = generator.random((50, 60))
    tensors = [dense, few, dense * (places < 0.01), few * (places < 0.5)]
    tensors.append(np.uint32(places < 0.001))
    expected = [round_trip(words.astype("uint32")) for words in tensors]
    monkeypatch.setattr(_symbol_codec, "_PART", 7)
    found = [round_trip(words.astype("uint32")) for words in tensors]
    assert found == expected


@keras.saving.register_keras_serializable(package="test")
class Scale(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model"
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(9), Scale()]
    )
    pack(model, path)
    return path.read_bytes()


def test_registered_layers_come_back(packed, tmp_path):
    (tmp_path / "model").write_bytes(packed)
    assert type(unpack(tmp_path / "model").layers[-1]) is Scale


def test_an_altered_file_is_refused(packed, tmp_path):
    file = tmp_path / "model"
    generator = np.random.default_rng(0)
    expected = "not a packed model|has format|is truncated or altered"
    for position in range(len(packed)):
        altered = bytearray(packed)
        altered[position] ^= int(generator.integers(1, 256))
        file.write_bytes(altered)
        with pytest.raises(ValueError, match=expected):
            unpack(file)
    for length in range(len(packed)):
        file.write_bytes(packed[:length])
        with pytest.raises(ValueError, match=expected):
            unpack(file)
    for more in (b"\0", packed):
        file.write_bytes(packed + more)
        with pytest.raises(ValueError, match=expected):
            unpack(file)


def test_an_altered_file_of_the_right_checksum_is_refused(packed, tmp_path):
    """Files with a valid checksum but other content."""
    file = tmp_path / "model"
    file.write_bytes(packed)
    bits = bits_of(unpack(file))
    generator = np.random.default_rng(0)
    for _ in range(300):
        body = bytearray(packed[8:])
        body[generator.integers(len(body))] ^= int(generator.integers(1, 256))
        file.write_bytes(
            packed[:4] + zlib.crc32(body).to_bytes(4, "little") + body
        )
        try:
            again = unpack(file)
        except ValueError as error:
            assert re.search("do not fit|be unpacked", str(error))
        else:  # Another name of a layer, bits that pad the last byte.
            assert bits_of(again) == bits


def forged(path, change):
    """Change the config in a packed file, and correct its checksum."""
    version, text, stream, checksum = _pack._parts(path)
    text = change(json.loads(_pack._inflate(text)))
    body = _pack._BODY.pack(checksum, len(text)) + text + bytes(stream)
    head = _pack._HEADER.pack(_pack._MAGIC, version, zlib.crc32(body))
    path.write_bytes(head + body)


def in_json(config):
    return _pack._deflate(json.dumps(config).encode())


def with_many_units(config):
    config["config"]["layers"][1]["config"]["units"] = 10**9
    return in_json(config)


CLAIMS = {
    "too small for the model": with_many_units,
    "must have at most": lambda config: _pack._deflate(bytes(1 << 24)),
    "Received: \\[5\\]": lambda config: in_json([5]),
}


@pytest.mark.parametrize("message", CLAIMS)
def test_a_small_file_takes_little_memory(packed, message, tmp_path):
    file = tmp_path / "model"
    file.write_bytes(packed)
    forged(file, CLAIMS[message])
    with pytest.raises(ValueError, match=message):
        unpack(file)


def test_a_model_that_unpack_would_refuse_is_not_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(_pack, "_SMALL_MODEL", 10)
    model = keras.Sequential(
        [keras.Input((500,)), layers.Dense(500, kernel_initializer="zeros")]
    )
    with pytest.raises(ValueError, match="The file is too small for the model"):
        pack(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    pack(mlp(), tmp_path / "model")


def test_assets_that_do_not_fit_are_refused(tmp_path):
    file = tmp_path / "model"
    pack(PREPROCESSING["words"](), file)

    def change(config):
        for own in config["assets"].values():
            own["files"] = {"../../away.txt": "text"}
        return in_json(config)

    forged(file, change)
    with pytest.raises(ValueError, match="do not fit the model") as error:
        unpack(file)
    assert "must not leave its folder" in str(error.value.__cause__)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no model at all")
    with pytest.raises(ValueError, match="Expected: a file that `pack` wrote"):
        unpack(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "nothing")


def test_another_version_is_refused(packed, tmp_path):
    (tmp_path / "model").write_bytes(packed[:3] + b"\x09" + packed[4:])
    with pytest.raises(ValueError, match="has format 9, but this version"):
        unpack(tmp_path / "model")


def test_what_cannot_be_packed(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(TypeError, match=r"must be a `keras.Model`"):
        pack(keras.layers.Dense(2), path)
    with pytest.raises(ValueError, match="is not built"):
        pack(keras.Sequential([keras.layers.Dense(2)]), path)
    with pytest.raises(ValueError, match="a file in a folder that exists"):
        pack(mlp(), tmp_path)
    with pytest.raises(ValueError, match="a file in a folder that exists"):
        pack(mlp(), tmp_path / "no" / "model")
    code = keras.Sequential(
        [keras.Input((2,)), keras.layers.Lambda(lambda x: x)]
    )
    with pytest.raises(ValueError, match="`Lambda` has code"):
        pack(code, path)

    class Own(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.layer = keras.layers.Dense(units)

        def call(self, inputs):
            return self.layer(inputs)

    own = Own(3)
    own(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="cannot be packed"):
        pack(own, path)
    assert not path.exists()


def test_the_dictionary_is_part_of_the_format():
    """It must never change: files written with another one cannot be read."""
    assert zlib.crc32(_pack._PHRASES) == 0x255B6A0B


# A file from `pack` of version 0.1.0, in format 1.
GOLDEN = """
S0RQAcCiaSkuQVVfTwAAAKOs7k3Pz0kZ4P4vDbf9DrlaN3EwFFcmo6XVCCutSKhvidyQOrr9
dHT76ej2U/psP6VKczmZxjnW0IyImsdo9BSHEVb1mBBoJhvHUlyzAQDp3Jd45YbkjXWeS9EA
AAAAPgcAAM0BAADL4s+jK+EzkMmowlvenW6p1t/cbf8NQHocACae5RsXSErlYuhVjGVYhoci
0QAAAHYAAAAAL4BdAPcZlx0sAGB3O2c5xHzZRfmZKXKqMIOuVA==
"""
GOLDEN_WEIGHTS = {
    "a/kernel": [[0, 0.5, 0, -0.25], [0.5, 0, 0, 0], [0, 0, -0.0, 0.5]],
    "a/bias": [0, 1 / 3, 2 / 3, 1],
    "b/gamma": [1, 1, 1, 1],
    "b/beta": [0, 0, 0, 0],
    "b/moving_mean": [0.1, 0.2, 0.3, 0.4],
    "b/moving_variance": [1, 2, 3, 4],
    "c/kernel": [[i / 7 - 0.5, (i + 1) / 7 - 0.5] for i in (0, 2, 4, 6)],
}


@pytest.mark.skipif(
    IS_KERAS_3_14,
    reason="Keras 3.14 cannot read the config, which Keras 3.15 wrote.",
)
def test_what_an_older_version_packed_is_read(tmp_path):
    (tmp_path / "golden").write_bytes(base64.b64decode(GOLDEN))
    model = unpack(tmp_path / "golden")
    assert (model.name, model.input_shape) == ("golden", (None, 3))
    assert [w.path for w in model.weights] == list(GOLDEN_WEIGHTS)
    for weight, expected in zip(model.weights, GOLDEN_WEIGHTS.values()):
        dtype = "float16" if weight.path == "c/kernel" else "float32"
        array = to_numpy(weight.value)
        assert array.dtype == dtype
        assert array.tobytes() == np.array(expected, dtype).tobytes()


OTHER = textwrap.dedent(
    """
    import sys
    import torch, numpy as np
    from keras_distill.compression import unpack
    model = unpack({path!r})
    x = np.load({x!r})
    np.save({out!r}, model.predict(x, verbose=0))
    np.savez({weights!r}, *model.get_weights())
    """
)
# Each backend reads a file that another backend wrote.
READ_BY = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}


def test_another_backend_makes_the_same_model(tmp_path):
    x, _ = images()
    model = cnn(4)
    model(x, training=True)
    pack(model, tmp_path / "model")
    np.save(tmp_path / "x.npy", x)
    names = dict(path="model", x="x.npy", out="y.npy", weights="weights.npz")
    code = OTHER.format(**{k: str(tmp_path / v) for k, v in names.items()})
    subprocess.run(
        command("-c", code),
        check=True,
        env=environment(KERAS_BACKEND=READ_BY[BACKEND]),
    )
    read = np.load(tmp_path / "weights.npz").values()
    for array, weight in zip(read, model.get_weights(), strict=True):
        assert (array.dtype, array.shape) == (weight.dtype, weight.shape)
        assert array.tobytes() == weight.tobytes()
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), model.predict(x, verbose=0), atol=1e-4
    )
