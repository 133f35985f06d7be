"""Recordings in parts, and recordings at URLs."""

import json
import shutil
import subprocess
import textwrap

import numpy as np
import pytest
from common import cnn
from common import images
from keras import layers
from programs import command
from programs import environment

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import record_teacher
from keras_distill.recording import _writer

pytestmark = pytest.mark.any_backend

X, _ = images(36, size=10)
EPOCHS, BATCHES = 3, 5


def views():
    """Draws a value per image, one for the whole batch, and partners."""
    crops = [InceptionCrop(9, 9), layers.RandomCrop(8, 8)]
    return ConsistentAugment([*crops, MixUp()], seed=4)


@pytest.fixture(scope="module")
def teacher():
    return cnn(4)


def record(teacher, path, data=X, **arguments):
    defaults = dict(augment=views(), epochs=EPOCHS, batch_size=8, verbose=0)
    return record_teacher(teacher, data, path, **{**defaults, **arguments})


def rows_of(recording):
    return np.concatenate(
        [
            recording.rows(epoch, batch)
            for epoch in range(recording.epochs)
            for batch in range(recording.num_batches)
        ]
    )


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    return rows_of(record(teacher, tmp_path_factory.mktemp("whole") / "r"))


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_parts_are_the_recording_without_parts(teacher, whole, tmp_path, count):
    """Sixteen parts of fifteen batches: one is empty."""
    for number in reversed(range(count)):
        assert record(teacher, tmp_path, part=(number, count)) is None
    np.testing.assert_array_equal(rows_of(RecordedTeacher(tmp_path)), whole)


def batches():
    return [(X[start : start + 8],) for start in range(0, 36, 8)]


def test_parts_of_a_stream(teacher, tmp_path):
    whole = record(teacher, tmp_path / "whole", batches())
    for number in range(4):
        record(teacher, tmp_path / "parts", batches(), part=(number, 4))
    np.testing.assert_array_equal(
        rows_of(RecordedTeacher(tmp_path / "parts")), rows_of(whole)
    )


def test_the_number_of_batches_must_be_known(teacher, tmp_path):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(X).batch(8)
    unknown = dataset.filter(lambda x: True)
    with pytest.raises(ValueError, match="assert_cardinality"):
        record(teacher, tmp_path, unknown, part=(0, 2))


def test_parts_draw_what_their_generators_counted(teacher, tmp_path):
    """Without seeds, the parts still have different views."""
    for number in range(2):
        augment = ConsistentAugment([InceptionCrop(8, 8)])
        record(teacher, tmp_path, epochs=2, augment=augment, part=(number, 2))
    rows = rows_of(RecordedTeacher(tmp_path))
    (name,) = (name for name in rows.dtype.names if name.startswith("drawn"))
    assert len(np.unique(rows[name], axis=0)) == len(rows)


def test_a_part_that_failed_continues(teacher, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "SHARD_BYTES", 1)
    calls = []

    def failing(x):
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("the server is down")
        return teacher(x)

    arguments = dict(part=(1, 2), teacher_preprocessing=None)
    whole_part = tmp_path / "whole"
    record(teacher, whole_part, **arguments)
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="the server is down"):
        record(failing, broken, **arguments)
    assert not json.loads((broken / "part-1/manifest.json").read_text())[
        "finished"
    ]
    record(failing, broken, **arguments)
    for name in ("shard-00000.npy", "shard-00006.npy"):
        one, two = (np.load(p / "part-1" / name) for p in (whole_part, broken))
        np.testing.assert_array_equal(one, two)


def test_what_does_not_belong_together_is_refused(teacher, tmp_path):
    for number in (0, 2):
        record(teacher, tmp_path / "r", part=(number, 3))
    with pytest.raises(ValueError, match="part 1 of 3 is missing"):
        RecordedTeacher(tmp_path / "r")
    with pytest.raises(ValueError, match=r"in 3 parts. Received: part=None"):
        record(teacher, tmp_path / "r")
    with pytest.raises(ValueError, match=r"in 3 parts. Received: part=\(1, 2"):
        record(teacher, tmp_path / "r", part=(1, 2))
    with pytest.raises(ValueError, match=r"Its epochs is 3. Received: 4"):
        record(teacher, tmp_path / "r", part=(0, 3), epochs=4)
    # Part 1 has other views than the others.
    other = ConsistentAugment([InceptionCrop(8, 8)], seed=4)
    record(teacher, tmp_path / "r", part=(1, 3), augment=other)
    with pytest.raises(ValueError, match="must have the same fingerprint"):
        RecordedTeacher(tmp_path / "r")
    # Part 2 lies where part 1 must be.
    shutil.rmtree(tmp_path / "r/part-1")
    shutil.copytree(tmp_path / "r/part-2", tmp_path / "r/part-1")
    with pytest.raises(ValueError, match="must hold part 1"):
        RecordedTeacher(tmp_path / "r")
    # Part 1 is one of two.
    for folder, number, count in (("a", 0, 3), ("b", 1, 2)):
        record(teacher, tmp_path / folder, part=(number, count))
    shutil.copytree(tmp_path / "b/part-1", tmp_path / "a/part-1")
    with pytest.raises(ValueError, match="must hold part 1 of 3"):
        RecordedTeacher(tmp_path / "a")
    # A whole recording lies where part 0 must be.
    record(teacher, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "c/part-0")
    with pytest.raises(ValueError, match=r"must hold part 0.*part=None"):
        RecordedTeacher(tmp_path / "c")
    with pytest.raises(ValueError, match=r"in 1 parts. Received: part=.0, 2"):
        record(teacher, tmp_path / "whole", part=(0, 2))


@pytest.mark.parametrize(
    "part", [1, (1,), (2, 2), (-1, 2), (0, 0), (0.0, 2), (0, True), "12"]
)
def test_parts_that_are_none(teacher, tmp_path, part):
    with pytest.raises(ValueError, match="Received: part="):
        record(teacher, tmp_path, part=part)


def test_every_storage_has_the_same_rows(teacher, whole, tmp_path):
    urls = "memory://one/recording", f"file://{tmp_path}/recording"
    for url in urls:
        assert record(teacher, url).path == url
        for prefix in ("", "simplecache::"):
            recording = RecordedTeacher(prefix + url)
            np.testing.assert_array_equal(rows_of(recording), whole)
    for number in range(2):
        record(teacher, "memory://parts", part=(number, 2))
    recording = RecordedTeacher("memory://parts")
    np.testing.assert_array_equal(rows_of(recording), whole)
    # The files are those of a folder.
    recording = RecordedTeacher(tmp_path / "recording")
    np.testing.assert_array_equal(rows_of(recording), whole)


def test_a_recording_at_a_url_continues_and_trains(teacher, whole, monkeypatch):
    monkeypatch.setattr(_writer, "SHARD_BYTES", 1)
    record(teacher, "memory://longer", epochs=1)
    recording = record(teacher, "memory://longer")
    np.testing.assert_array_equal(rows_of(recording), whole)
    assert len(recording.shards._open) == 2 < BATCHES * EPOCHS
    distiller = Distiller(student=cnn(2), teacher=recording, augment=views())
    distiller.compile("sgd")
    losses = distiller.fit(X, epochs=4, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


def test_a_damaged_shard_at_a_url_is_refused(teacher):
    import fsspec

    record(teacher, "memory://damaged", epochs=1)
    storage, path = fsspec.core.url_to_fs("memory://damaged")
    content = bytearray(storage.cat(f"{path}/shard-00000.npy"))
    content[-1] ^= 1
    storage.pipe(f"{path}/shard-00000.npy", bytes(content))
    with pytest.raises(ValueError, match="is missing, incomplete or damaged"):
        RecordedTeacher("memory://damaged").rows(0, 0)
    storage.rm(f"{path}/shard-00000.npy")
    with pytest.raises(
        ValueError, match=r"shard-00000.npy of the recording at"
    ):
        RecordedTeacher("memory://damaged")


@pytest.mark.one_backend("torch")
def test_without_fsspec_a_url_is_refused():
    code = """
    import sys
    import torch  # uses it
    sys.modules["fsspec"] = None
    from keras_distill import RecordedTeacher
    try:
        RecordedTeacher("s3://bucket/recording")
    except ImportError as error:
        assert "pip install keras-distill[fsspec]" in str(error)
    else:
        raise AssertionError
    """
    program = command("-c", textwrap.dedent(code))
    subprocess.run(program, env=environment(), check=True)


def test_replicas_must_divide_all_batches(teacher, tmp_path):
    with pytest.raises(ValueError, match="divisible by `replicas`"):
        record(teacher, tmp_path / "a", replicas=3)
    with pytest.raises(ValueError, match="a batch of 4 samples in batches of"):
        record(teacher, tmp_path / "b", replicas=2)
    with pytest.raises(ValueError, match="`replicas` must be"):
        record(teacher, tmp_path / "c", replicas=0)
    recording = record(teacher, tmp_path / "d", replicas=2, data=X[:32])
    (partner,) = (
        name for name in recording.shards.dtype.names if "partner" in name
    )
    partners = rows_of(recording)[partner].reshape(-1, 4)
    np.testing.assert_array_equal(
        np.sort(partners), np.tile(np.arange(4), (len(partners), 1))
    )


def test_one_device_refuses_a_recording_for_two(teacher, tmp_path):
    recording = record(teacher, tmp_path, replicas=2, data=X[:32])
    distiller = Distiller(student=cnn(2), teacher=recording, augment=views())
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="was made for 2 replicas"):
        distiller.fit(X[:32], verbose=0)
