"""Changes valid files at random, and reads them: the same, or refused.

`python tests/fuzz_readers.py --seconds 600` takes this long for each reader.
It reports every outcome other than "loads the same" or a `ValueError` or
`OSError`, and every read that takes long or much memory.

- Damage changes bytes, as a bad disk or a broken copy does. What loads must be
  the same as before.
- A forgery has valid checksums, as only a stranger would make it. What loads
  may differ, as anybody can write a valid file.

Keras and h5py read checkpoints. They have no checksum of the values, and raise
errors of other types for damaged files.
"""

import argparse
import copy
import functools
import json
import math
import pathlib
import random
import re
import resource
import tempfile
import time
import traceback
import zipfile
import zlib

import keras
import numpy as np
from common import BACKEND
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import RecordedTeacher
from keras_distill import record_teacher
from keras_distill.compression import pack
from keras_distill.compression import unpack
from keras_distill.compression.packing import _pack
from keras_distill.recording import _storage

MAX_SECONDS, MAX_MEMORY = 10, 1 << 30
# What JSON of a stranger may contain in place of a value.
VALUES = [
    *(None, True, -1, 0, 1, 3, 10**9, 2**63, 10**30, 0.5, -1e308, math.nan),
    *("", "float32", "O", "|O8", "<f8", "../../away", "/away", "\0", "x" * 999),
    *([], [[]], [10**9], [-1], {}, {"units": 10**9}, [[[[[[]]]]]]),
]


def damaged(data, rng):
    """Return bytes with flipped bits, or with a part cut, doubled or zeroed."""
    data = bytearray(data)
    kind = rng.choice(["flip", "flip", "cut", "double", "zero", "end"])
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 2, 8, 64]))
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 4])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "end":
        del data[start:]
    elif kind == "zero":
        data[start:stop] = bytes(stop - start)
    else:
        part = data[start:stop]
        data[start:stop] = b"" if kind == "cut" else part + part
    return bytes(data)


def places(config):
    """Return `(container, key)` for each value in JSON."""
    found, todo = [], [config]
    while todo:
        part = todo.pop()
        if isinstance(part, (dict, list)):
            keys = part if isinstance(part, dict) else range(len(part))
            found += [(part, key) for key in keys]
            todo += [part[key] for key in keys]
    return found


def forged(config, rng):
    """Return JSON with some values changed, removed, doubled or swapped."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice([1, 1, 2, 5])):
        part, key = rng.choice(places(config) or [([0], 0)])
        kind = rng.choice(["value", "value", "remove", "double", "swap"])
        if kind == "value":
            part[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == "remove":
            del part[key]
        elif kind == "double" and isinstance(part, list):
            part.insert(key, copy.deepcopy(part[key]))
        elif kind == "swap" and places(config):
            other, place = rng.choice(places(config))
            value = copy.deepcopy(other[place])
            part[key] = value
    return config


def state_of(model):
    arrays = [to_numpy(variable.value) for variable in model.weights]
    return [(str(a.dtype), a.shape, a.tobytes()) for a in arrays]


class PackedModel:
    """`unpack`, of a model with assets and several kinds of layers."""

    refusals = (ValueError, OSError)

    def write(self, folder):
        inputs = keras.Input((1,), dtype="string")
        words = layers.TextVectorization(output_sequence_length=4)
        words.adapt(np.array(["a b", "b c"]))
        x = layers.Embedding(9, 3)(words(inputs))
        x = layers.Conv1D(4, 2)(layers.Dropout(0.1)(x))
        x = layers.Dense(3)(layers.GRU(2)(layers.BatchNormalization()(x)))
        pack(keras.Model(inputs, x), folder / "model")

    def damage(self, folder, rng):
        file = folder / "model"
        file.write_bytes(damaged(file.read_bytes(), rng))

    def forge(self, folder, rng):
        file = folder / "model"
        version, text, stream, checksum = _pack._parts(file)
        config = json.loads(_pack._inflate(text))
        stream = bytes(stream)
        if rng.random() < 0.8:
            config = forged(config, rng)
        else:
            stream = damaged(stream, rng)
        text = _pack._deflate(json.dumps(config).encode())
        body = _pack._BODY.pack(checksum, len(text)) + text + stream
        head = _pack._HEADER.pack(_pack._MAGIC, version, zlib.crc32(body))
        file.write_bytes(head + body)

    def read(self, folder):
        return state_of(unpack(folder / "model"))


class Recording:
    """`RecordedTeacher`: all rows of a recording, and a replay of them."""

    refusals = (ValueError, OSError)

    def __init__(self, **options):
        self.options = options
        self.x, self.y = images(8, size=4)
        self.augment = ConsistentAugment([layers.RandomFlip()])
        self.student = self.network()

    @staticmethod
    def network():
        return keras.Sequential(
            [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(5)]
        )

    def write(self, folder):
        record_teacher(
            self.network(),
            self.x,
            folder,
            augment=self.augment,
            epochs=2,
            batch_size=4,
            verbose=0,
            **self.options,
        )

    def damage(self, folder, rng):
        file = rng.choice(sorted(folder.iterdir()))
        file.write_bytes(damaged(file.read_bytes(), rng))

    def forge(self, folder, rng):
        file = folder / "manifest.json"
        manifest = json.loads(file.read_text())
        del manifest["checksum"]
        if rng.random() < 0.8:
            manifest = forged(manifest, rng)
        else:
            shard = folder / "shard-00000.npy"
            shard.write_bytes(damaged(shard.read_bytes(), rng))
            size = shard.stat().st_size
            manifest["shards"] = [{"rows": 16, "bytes": size}]
        checksum = _storage._checksum(manifest)
        file.write_text(json.dumps({**manifest, "checksum": checksum}))

    def read(self, folder):
        recording = RecordedTeacher(folder)
        distiller = Distiller(
            student=self.student, teacher=recording, augment=self.augment
        )
        distiller.compile("sgd")
        batches = []
        for epoch in range(min(recording.epochs, 3)):
            for batch in range(min(recording.num_batches, 3)):
                rows = recording.rows(epoch, batch)
                outputs = recording.in_structure(recording.outputs_in(rows))
                drawn = recording.drawn_in(rows)
                batches += [*keras.tree.flatten((outputs, drawn))]
        return [(a.dtype.str, a.shape, a.tobytes()) for a in batches]


class Checkpoint:
    """`keras.models.load_model`, of a `Distiller` with its optimizer."""

    # Keras does not promise what it raises.
    refusals = (Exception,)

    def write(self, folder):
        distiller = Distiller(student=mlp(), teacher=mlp(8))
        distiller.compile("adam")
        distiller.fit(vectors()[0], verbose=0)
        distiller.save(folder / "distiller.keras")

    def damage(self, folder, rng):
        file = folder / "distiller.keras"
        file.write_bytes(damaged(file.read_bytes(), rng))

    def forge(self, folder, rng):
        file = folder / "distiller.keras"
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(parts))
        if name.endswith(".json"):
            config = forged(json.loads(parts[name]), rng)
            parts[name] = json.dumps(config).encode()
        else:
            parts[name] = damaged(parts[name], rng)
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part)

    def read(self, folder):
        return state_of(keras.models.load_model(folder / "distiller.keras"))


READERS = {
    "packed": PackedModel,
    "recording": functools.partial(Recording, top_k=2),
    "hidden states": functools.partial(Recording, hidden_states=True),
    "checkpoint": Checkpoint,
}


class Files:
    """The files of a folder, which are written again before each case."""

    def __init__(self, folder):
        self.folder = folder
        self.content = {p.name: p.read_bytes() for p in folder.iterdir()}

    def restore(self):
        for name, data in self.content.items():
            (self.folder / name).write_bytes(data)


def outcome(reader, folder, expected, kind):
    """Return what is wrong with one read, or `None`."""
    start, peak = time.monotonic(), _peak_memory()
    try:
        found = reader.read(folder)
    except reader.refusals as error:
        found = None
        if _OUT_OF_MEMORY.search(f"{error!r} {error.__cause__!r}"):
            return traceback.format_exc()
    except BaseException:
        return traceback.format_exc(limit=-3)
    if time.monotonic() - start > MAX_SECONDS:
        return f"It took {time.monotonic() - start:.0f} s."
    if _peak_memory() - peak > MAX_MEMORY:
        return f"It took {(_peak_memory() - peak) >> 20} MB."
    if kind == "damage" and found not in (None, expected):
        return "It loads another content."
    return None


_OUT_OF_MEMORY = re.compile(
    "(?i)memoryerror|unable to allocate|out of memory|exhausted|t allocate mem"
)


def _peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(name, root, seconds=math.inf, cases=math.inf, seed=0):
    """Return `(number of cases, {what is wrong: case})` for a reader.

    Args:
        name: key of `READERS`.
        root: an empty folder.
        seconds, cases: when to end.
        seed: int. A case depends on it and on its number.
    """
    folder = root / "inner" / "folder"
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    reader = READERS[name]()
    reader.write(folder)
    files, expected = Files(folder), reader.read(folder)
    findings, case, end = {}, 0, time.monotonic() + seconds
    while case < cases and time.monotonic() < end:
        files.restore()
        rng = random.Random(f"{seed} {case}")
        kind = rng.choice(["damage", "forge"])
        getattr(reader, kind)(folder, rng)
        wrong = outcome(reader, folder, expected, kind)
        if {p.name for p in folder.iterdir()} != {*files.content}:
            wrong = "It wrote files."
        if [*root.iterdir()] != [root / "inner"]:
            wrong = "It left its folder."
        if wrong:
            findings.setdefault(wrong, f"{name}, {kind}, case {case}")
        if case % 50 == 0:
            keras.utils.clear_session(free_memory=False)
        case += 1
    return case, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", default=[*READERS])
    arguments = parser.parse_args()
    failed = False
    for name in arguments.readers:
        with tempfile.TemporaryDirectory() as folder:
            cases, findings = fuzz(
                name,
                pathlib.Path(folder),
                seconds=arguments.seconds,
                seed=arguments.seed,
            )
        print(f"{BACKEND}, {name}: {cases} cases, {len(findings)} findings")
        for wrong, case in findings.items():
            print(f"\n{case}\n{wrong}")
        failed |= bool(findings)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
