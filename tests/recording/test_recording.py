"""Recordings: what is replayed is what was seen, or it is refused."""

import json
import signal
import subprocess
import time

import keras
import numpy as np
import pytest
from common import CLASSES
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers
from programs import command
from programs import environment

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import RecordedTeacher
from keras_distill import record_teacher
from keras_distill.recording import _writer


def views(seed=1):
    return ConsistentAugment(
        [InceptionCrop(8, 8), layers.RandomFlip("horizontal"), MixUp()],
        seed=seed,
    )


def recorded(teacher, data, path, **options):
    record_teacher(teacher, data, path, **{"verbose": 0, **options})
    return RecordedTeacher(path, live=teacher)


def distiller_of(student, teacher, loss=None, **options):
    distiller = Distiller(student=student, teacher=teacher, **options)
    distiller.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), loss=loss or ClassicKD()
    )
    return distiller


def losses_of(student, teacher, *data, loss=None, augment=None, **options):
    """Return the losses of a run, and the student's weights after it."""
    distiller = distiller_of(student, teacher, loss, augment=augment)
    history = distiller.fit(*data, verbose=0, **options).history["loss"]
    return history, weights_of(student)


def student_of(make):
    keras.utils.set_random_seed(5)
    return make(2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_replayed_training_equals_live_training(tmp_path, dtype):
    x, y = images(36, size=12, dtype="uint8")
    weight = np.linspace(0, 2, 36).astype("float32")
    teacher = cnn(8)
    recording = recorded(
        teacher,
        x,
        tmp_path,
        augment=views(),
        epochs=3,
        batch_size=16,
        seed=None,
        storage_dtype=dtype,
    )
    live, live_weights = losses_of(
        student_of(cnn),
        teacher,
        x,
        y,
        augment=views(),
        epochs=3,
        batch_size=16,
        shuffle=False,
        sample_weight=weight,
    )
    replayed, replayed_weights = losses_of(
        student_of(cnn),
        recording,
        x,
        y,
        augment=views(None),  # draws nothing: its seed does not matter
        epochs=3,
        sample_weight=weight,
    )
    if dtype == "float32":
        # Two compiled steps, so the last bit may differ.
        for first, second in zip(live_weights, replayed_weights):
            np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        replayed, live, rtol=1e-6 if dtype == "float32" else 1e-3
    )


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return self.x[rows], self.y[rows]


def tf_data(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def loader(x, y):
    import torch

    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(data, batch_size=8)


STREAMS = {"PyDataset": Batches, "tf.data": tf_data, "DataLoader": loader}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_are_replayed_in_their_order(tmp_path, kind):
    x, y = vectors(30)
    teacher = mlp(16)
    recording = recorded(
        teacher,
        STREAMS[kind](x, y),
        tmp_path,
        epochs=2,
        storage_dtype="float32",
    )
    live = losses_of(
        student_of(mlp), teacher, STREAMS[kind](x, y), epochs=3, shuffle=False
    )
    replayed = losses_of(
        student_of(mlp), recording, STREAMS[kind](x, y), epochs=3
    )
    np.testing.assert_allclose(replayed[0], live[0], rtol=1e-6)
    for others in (STREAMS[kind](x[::-1].copy(), y), STREAMS[kind](x + 1, y)):
        with pytest.raises(Exception, match="not those of the recording"):
            losses_of(student_of(mlp), recording, others)


def test_epochs_differ_and_start_over(tmp_path):
    x, y = images(20, size=12)
    recording = recorded(
        cnn(8), x, tmp_path, augment=views(), epochs=2, batch_size=8
    )
    assert (recording.epochs, recording.num_batches) == (2, 3)
    rows = [recording.rows(epoch, 0) for epoch in range(3)]
    assert not np.array_equal(rows[0]["sample"], rows[1]["sample"])
    assert not np.array_equal(rows[0]["output_0"], rows[1]["output_0"])
    np.testing.assert_array_equal(rows[0], rows[2])
    everyone = [recording.rows(0, batch)["sample"] for batch in range(3)]
    assert sorted(np.concatenate(everyone)) == list(range(20))
    distiller = distiller_of(cnn(2), recording, augment=views())
    distiller.fit(x, y, epochs=5, verbose=0)


def test_few_samples_are_one_batch_of_any_larger_size(tmp_path):
    x, y = vectors(20)
    recording = recorded(mlp(16), x, tmp_path, batch_size=32)
    losses = [
        losses_of(student_of(mlp), recording, x, y, batch_size=size)[0]
        for size in (20, 32, 64)
    ]
    assert losses[0] == losses[1] == losses[2]
    for size in (10, "32"):
        with pytest.raises(ValueError, match="has batches of 20 samples"):
            losses_of(student_of(mlp), recording, x, y, batch_size=size)


def test_a_resumed_run_goes_on_at_its_epoch(tmp_path):
    x, y = vectors(24)
    recording = recorded(mlp(16), x, tmp_path / "a", epochs=4)
    whole, weights = losses_of(student_of(mlp), recording, x, y, epochs=4)
    student = student_of(mlp)
    distiller = distiller_of(student, recording)
    parts = distiller.fit(x, y, epochs=2, verbose=0).history["loss"]
    parts += distiller.fit(x, y, initial_epoch=2, epochs=4, verbose=0).history[
        "loss"
    ]
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    assert same_weights(weights_of(student), weights, 1e-6)


def test_many_students_and_losses_replay_one_recording(tmp_path):
    x, y = vectors(24)
    recording = recorded([mlp(16), mlp(8)], (x,)[0], tmp_path)
    for loss in (FunctionMatching(), FunctionMatching(4.0), ClassicKD(0.5)):
        distiller = distiller_of(mlp(), recording, loss)
        logs = distiller.fit(
            x, y, validation_data=(x, y), epochs=2, verbose=0
        ).history
        assert logs["val_loss"][1] < logs["val_loss"][0]


def test_dicts_in_and_out_without_labels(tmp_path):
    def network(units):
        inputs = {
            "a": keras.Input((6,), name="a"),
            "b": keras.Input((2,), name="b"),
        }
        hidden = layers.Concatenate()([inputs["a"], inputs["b"]])
        hidden = layers.Dense(units, "relu")(hidden)
        return keras.Model(
            inputs,
            {"one": layers.Dense(3)(hidden), "two": layers.Dense(5)(hidden)},
        )

    generator = np.random.default_rng(0)
    x = {
        "a": generator.normal(size=(20, 6)),
        "b": generator.normal(size=(20, 2)),
    }
    teacher = network(16)
    loss = {"one": FunctionMatching(), "two": FunctionMatching(2.0)}
    recording = recorded(
        teacher, x, tmp_path, seed=None, storage_dtype="float32"
    )
    live = losses_of(
        student_of(network), teacher, x, loss=loss, shuffle=False, epochs=2
    )
    replayed = losses_of(student_of(network), recording, x, loss=loss, epochs=2)
    np.testing.assert_allclose(replayed[0], live[0], rtol=1e-6)


LAYERS = {
    "RandomCrop": lambda: layers.RandomCrop(8, 8),
    "RandomGaussianBlur": lambda: layers.RandomGaussianBlur(),
    "RandomRotation": lambda: layers.RandomRotation(0.2),
    "RandomErasing": lambda: layers.RandomErasing(value_range=(0, 255)),
    "CutMix": lambda: layers.CutMix(),
    "RandomContrast": lambda: layers.RandomContrast(0.5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_keras_layers_are_replayed(tmp_path, name):
    x, y = images(20, size=8, channels=3)
    teacher = cnn(6, channels=3)
    runs = []
    for given in ("teacher", "recording"):
        keras.utils.set_random_seed(3)
        augment = ConsistentAugment(LAYERS[name](), seed=2)
        if given == "recording":
            given = recorded(
                teacher,
                x,
                tmp_path,
                augment=augment,
                seed=None,
                storage_dtype="float32",
            )
            augment = ConsistentAugment(LAYERS[name](), seed=9)
        else:
            given = teacher
        student = student_of(lambda width: cnn(width, channels=3))
        runs.append(
            losses_of(student, given, x, y, augment=augment, shuffle=False)[0]
        )
    np.testing.assert_allclose(*runs, rtol=1e-5)


@pytest.mark.parametrize(
    ("classes", "top_k", "limit"), [(10, None, 64), (1000, 16, 128)]
)
def test_bytes_per_view(tmp_path, classes, top_k, limit):
    x, _ = images(512, size=12, dtype="uint8")
    record_teacher(
        cnn(2, classes=classes),
        x,
        tmp_path,
        augment=views(),
        batch_size=64,
        top_k=top_k,
        verbose=0,
    )
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size / 512 <= limit + 4  # the manifest, once


@pytest.mark.parametrize("from_logits", [True, False])
def test_top_k_keeps_the_largest_and_the_mass_of_the_rest(
    tmp_path, from_logits
):
    x, _ = vectors(16)
    x *= 3
    teacher = mlp(16, classes=20, activation=None if from_logits else "softmax")
    recording = recorded(
        teacher, x, tmp_path, seed=None, top_k=4, from_logits=from_logits
    )
    outputs = recording.outputs_in(recording.rows(0, 0))["output_0"]
    exact = teacher.predict(x, verbose=0).astype("float64")
    if from_logits:
        outputs, exact = np.exp(outputs), np.exp(exact)
        exact /= exact.sum(-1, keepdims=True)
    order = np.argsort(-exact, axis=-1)
    expected = np.sort(exact, axis=-1)[:, ::-1].copy()
    expected[:, 4:] = expected[:, 4:].mean(-1, keepdims=True)
    np.testing.assert_allclose(
        np.take_along_axis(outputs, order, -1), expected, rtol=4e-3
    )
    np.testing.assert_allclose(outputs.sum(-1), 1, atol=2e-3)


def test_a_killed_recording_goes_on_and_ends_the_same(tmp_path):
    program = """
import sys, time
from common import *
from keras_distill import *
from keras_distill.recording import _writer
_writer.SHARD_BYTES = 1
keras.utils.set_random_seed(0)
teacher = cnn(4)
seed = int(sys.argv[2])
augment = ConsistentAugment([InceptionCrop(8, 8), MixUp()], seed=seed)
x, _ = images(40, size=12)
if sys.argv[3] == "slow":
    save = _writer.RecordingWriter._save
    def slow(self):
        save(self)
        print(self._shards.num_rows, flush=True)
        time.sleep(0.05)
    _writer.RecordingWriter._save = slow
record_teacher(
    teacher, x, sys.argv[1], augment=augment, epochs=6, batch_size=8, verbose=0
)
"""

    def start(name, seed, speed):
        return subprocess.Popen(
            command("-c", program, str(tmp_path / name), seed, speed),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )

    whole = start("whole", "1", "fast")
    killed = start("killed", "1", "slow")
    with killed:
        for line in killed.stdout:
            if int(line) >= 100:
                killed.send_signal(signal.SIGKILL)
                break
    whole.communicate()
    assert whole.returncode == 0
    with pytest.raises(ValueError, match="is not finished: 1"):
        RecordedTeacher(tmp_path / "killed")
    # A file that a kill left half written.
    (tmp_path / "killed" / "shard-00099.npy.unfinished").write_bytes(b"x")
    # The views go on where they were, whatever the seed of this process is.
    with start("killed", "7", "fast") as again:
        again.communicate()
    assert again.returncode == 0
    first, second = (
        RecordedTeacher(tmp_path / name) for name in ("whole", "killed")
    )
    assert first.shards.num_rows == second.shards.num_rows == 240
    np.testing.assert_array_equal(
        first.shards.read(0, 240), second.shards.read(0, 240)
    )


def test_longer_recordings_go_on(tmp_path):
    x, _ = vectors(20)
    teacher = mlp(8)
    short = recorded(teacher, x, tmp_path, epochs=1)
    before = short.rows(0, 0)
    longer = recorded(teacher, x, tmp_path, epochs=3)
    assert longer.epochs == 3
    np.testing.assert_array_equal(longer.rows(0, 0), before)
    with pytest.raises(ValueError, match="another recording"):
        record_teacher(mlp(8), x, tmp_path, verbose=0)
    with pytest.raises(ValueError, match="Its data"):
        record_teacher(teacher, x + 1, tmp_path, verbose=0)
    with pytest.raises(ValueError, match="Its storage_dtype is float16"):
        record_teacher(teacher, x, tmp_path, storage_dtype="float32", verbose=0)


def test_a_trained_teacher_is_the_same_when_loaded(tmp_path):
    """Neither its metrics nor the seeds of its dropout are in its file."""
    x, y = images(20)
    teacher = cnn(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile("sgd", loss, metrics=["accuracy"])
    teacher.fit(x, y, verbose=0)
    recorded(teacher, x, tmp_path / "recording")
    teacher.save(tmp_path / "teacher.keras")
    loaded = keras.models.load_model(tmp_path / "teacher.keras")
    assert recorded(loaded, x, tmp_path / "recording", epochs=2).epochs == 2


def test_what_does_not_fit_is_refused(tmp_path):
    x, y = images(20, size=12)
    teacher = cnn(4)
    recording = recorded(teacher, x, tmp_path, augment=views(), batch_size=8)
    student = cnn(2)
    for augment in (None, MixUp(), ConsistentAugment([InceptionCrop(8, 8)])):
        with pytest.raises(ValueError, match="made with other views"):
            Distiller(student=student, teacher=recording, augment=augment)
    with pytest.raises(ValueError, match="outputs but no features"):
        Distiller(
            student=student,
            teacher=recording,
            augment=views(),
            hints=[Hint("conv", student.layers[0].name)],
        )
    distiller = distiller_of(student, recording, augment=views())
    with pytest.raises(ValueError, match="not those of the recording"):
        distiller.fit(x[::-1].copy(), y, verbose=0)
    with pytest.raises(ValueError, match="not those of the recording"):
        distiller.fit(x[:10], y[:10], verbose=0)
    with pytest.raises(ValueError, match="has batches of 8"):
        distiller.fit(x, y, batch_size=16, verbose=0)
    with pytest.raises(ValueError, match="Received: validation_split"):
        distiller.fit(x, y, validation_split=0.1, verbose=0)
    with pytest.raises(ValueError, match=r"is replayed by `fit\(\)`"):
        distiller.train_on_batch(x[:8, :8, :8], y[:8])
    sure = cnn(2)
    sure.add(layers.Softmax())
    with pytest.raises(ValueError, match="recorded with from_logits=True"):
        distiller_of(
            sure,
            RecordedTeacher(tmp_path),
            FunctionMatching(from_logits=False),
            augment=views(),
        )
    other = cnn(2, classes=CLASSES + 1)
    with pytest.raises(ValueError, match="The teacher predicts 5 classes"):
        distiller_of(other, recording, augment=views())
    alone = RecordedTeacher(tmp_path)
    with pytest.raises(ValueError, match="for its own views only"):
        distiller_of(cnn(2), alone, augment=views()).evaluate(
            x[:, :8, :8], y, verbose=0
        )


def test_what_top_k_leaves_out_is_not_compared(tmp_path):
    recording = recorded(mlp(), vectors(20)[0], tmp_path, top_k=2)
    distiller = Distiller(student=mlp(3), teacher=recording)
    with pytest.raises(ValueError, match="record without `top_k`"):
        distiller.compile("sgd", FunctionMatching(divergence="reverse"))
    distiller.compile("sgd", FunctionMatching(divergence="jensen_shannon"))


def test_bad_outputs_and_bad_data_are_refused(tmp_path):
    x, _ = vectors(20)
    x[13] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity for 1 samples"):
        linear = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
        record_teacher(linear, x, tmp_path / "a", seed=None, verbose=0)
    large = mlp()
    large.set_weights([1e4 * weight for weight in large.get_weights()])
    with pytest.raises(
        ValueError, match="Record with `storage_dtype='float32'`"
    ):
        record_teacher(large, vectors(20)[0], tmp_path / "b", verbose=0)
    with pytest.raises(ValueError, match="no batches"):
        record_teacher(mlp(), [], tmp_path / "c", verbose=0)
    with pytest.raises(ValueError, match="Received lengths"):
        record_teacher(mlp(), x[:0], tmp_path / "c", verbose=0)
    with pytest.raises(ValueError, match="Received an iterator"):
        record_teacher(mlp(), iter([x]), tmp_path / "c", verbose=0)
    with pytest.raises(ValueError, match="one size"):
        record_teacher(
            mlp(), [x[:4], x[4:6], x[6:10]], tmp_path / "d", verbose=0
        )
    with pytest.raises(ValueError, match="top_k=6"):
        record_teacher(mlp(), x, tmp_path / "e", top_k=6, verbose=0)
    with pytest.raises(ValueError, match="storage_dtype='int8'"):
        record_teacher(
            mlp(), x, tmp_path / "e", storage_dtype="int8", verbose=0
        )


def test_bad_files_are_refused(tmp_path):
    x, _ = vectors(20)
    with pytest.raises(ValueError, match="There is no recording"):
        RecordedTeacher(tmp_path)
    recorded(mlp(), x, tmp_path)
    shard, manifest = tmp_path / "shard-00000.npy", tmp_path / "manifest.json"
    data, text = shard.read_bytes(), manifest.read_text()
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="missing, incomplete or damaged"):
        RecordedTeacher(tmp_path)
    shard.write_bytes(data)
    manifest.write_text(text[:50])
    with pytest.raises(ValueError, match="is not the manifest"):
        RecordedTeacher(tmp_path)
    manifest.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(ValueError, match="has format 99"):
        RecordedTeacher(tmp_path)


@pytest.fixture(scope="module")
def of_a_stranger(tmp_path_factory):
    """A function that records, changes the manifest, and opens it again."""
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("recording")
    recorded(mlp(), vectors(20)[0], folder, top_k=2)
    file = folder / "manifest.json"
    text = file.read_text()

    def changed(change):
        manifest = json.loads(text)
        del manifest["checksum"]  # as in older recordings
        change(manifest)
        file.write_text(json.dumps(manifest))
        return RecordedTeacher(folder)

    return changed


CLAIMS = {
    "batch_size": lambda m: m.update(batch_size="4"),
    "top_k": lambda m: m.update(top_k=10**9),
    "output_shapes": lambda m: m.update(output_shapes=[[-1]]),
    "structure": lambda m: m.update(structure="output_1"),
    "endings": lambda m: m.update(endings=[]),
    "drawn_per_row": lambda m: m.update(drawn_per_row={"flips": True}),
    "fields": lambda m: m["fields"][1].__setitem__(1, "|O"),
    "fingerprint": lambda m: m["fingerprint"]["teacher"].update(members=1),
    "shards": lambda m: m["shards"][0].update(rows=-(10**12)),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_manifest_that_contradicts_itself_is_refused(of_a_stranger, name):
    of_a_stranger(lambda manifest: None)
    with pytest.raises(ValueError, match=f"not the manifest.*Received: {name}"):
        of_a_stranger(CLAIMS[name])


def test_a_shard_of_terabytes_takes_no_memory(of_a_stranger):
    def more(manifest):
        manifest["rows_per_epoch"] = manifest["shards"][0]["rows"] = 10**12

    recording = of_a_stranger(more)
    with pytest.raises(ValueError, match="Expected: 1000000000000 rows"):
        recording.rows(0, 0)


def test_classes_and_samples_that_are_not_there(tmp_path, monkeypatch):
    """As a stranger may write them, with the right checksums."""
    x, y = vectors(20)
    recording = recorded(mlp(), x, tmp_path, top_k=2)
    for field, message in (
        ("output_0_classes", "Recorded classes must be below 5"),
        ("sample", "not those of the recording.*Received: 20 samples"),
    ):
        rows = recording.shards.read(0, 20)
        rows[field] = 60_000
        monkeypatch.setattr(recording.shards, "_open", {0: rows})
        with pytest.raises(ValueError, match=message):
            losses_of(mlp(), recording, x, y)
        monkeypatch.undo()


def test_damage_is_found(tmp_path):
    recorded(mlp(), vectors(20)[0], tmp_path)
    shard, manifest = tmp_path / "shard-00000.npy", tmp_path / "manifest.json"
    data, text = shard.read_bytes(), manifest.read_text()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"damaged\. Expected: checksum"):
        RecordedTeacher(tmp_path).rows(0, 0)
    shard.write_bytes(data)
    manifest.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="or it was changed"):
        RecordedTeacher(tmp_path)
    manifest.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not the manifest"):
        RecordedTeacher(tmp_path)


@pytest.mark.one_backend("jax")
def test_a_recording_of_another_backend_is_replayed(tmp_path):
    """The drawn transformations are stored, so no generator has to agree."""
    x, y = images(16, size=12)
    teacher = cnn(4)
    teacher.save(tmp_path / "teacher.keras")
    np.save(tmp_path / "x.npy", x)
    program = f"""
from common import *
from keras_distill import *
folder = {str(tmp_path)!r}
teacher = keras.models.load_model(folder + "/teacher.keras")
augment = ConsistentAugment(
    [InceptionCrop(8, 8), keras.layers.RandomFlip("horizontal"), MixUp()]
)
record_teacher(
    teacher, np.load(folder + "/x.npy"), folder + "/there",
    augment=augment, batch_size=16, storage_dtype="float32", verbose=0,
)
"""
    subprocess.run(
        command("-c", program),
        env=environment(KERAS_BACKEND="torch"),
        check=True,
    )
    recording = RecordedTeacher(tmp_path / "there")
    rows = recording.rows(0, 0)
    view, _ = views().draw(x[rows["sample"]], recording.drawn_in(rows))
    np.testing.assert_allclose(
        recording.outputs_in(rows)["output_0"],
        to_numpy(teacher(view, training=False)),
        rtol=1e-3,
        atol=1e-3,
    )
    losses_of(cnn(2), recording, x, y, augment=views())


def test_the_clock_finishes_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "SHARD_SECONDS", 0)
    begin = time.time()
    recording = recorded(mlp(), vectors(96)[0], tmp_path)
    assert len(recording.manifest["shards"]) == 3
    assert time.time() - begin < 60
