"""Replay: the dataset that joins the data of `fit()` with recorded rows.

In each of its batches, the inputs travel with what was drawn for the view and
with the teacher's outputs. The training step renders the view from them.
"""

from typing import Any

import keras
import numpy as np
from keras import tree

from keras_distill import _backend
from keras_distill.recording import _recorded_batch
from keras_distill.recording import _sources
from keras_distill.recording._recorded_teacher import RecordedTeacher


class Replay(keras.utils.PyDataset):
    """The batches of the data of `fit()`, joined with recorded rows.

    Args:
        recording: a `RecordedTeacher`.
        x, y, sample_weight: as for `fit()`.

    Raises:
        ValueError: if this is not the data of the recording.
    """

    def __init__(
        self,
        recording: RecordedTeacher,
        x: Any,
        y: Any,
        sample_weight: Any,
    ) -> None:
        super().__init__()
        self.recording = recording
        self.epoch = 0  # set by a callback, because training can be resumed
        recorded = recording.manifest["fingerprint"]["data"]
        source = _sources.source_of(
            x, recorded.get("batch_size"), recorded.get("seed")
        )
        if source.fingerprint != recorded:
            raise ValueError(
                f"{_sources.OTHER_SAMPLES} Received: {source.fingerprint}, "
                f"recorded: {recorded}."
            )
        self._batches: _Arrays | _Stream
        if isinstance(source, _sources.ArraySource):
            self._batches = _Arrays(source.arrays, y, sample_weight)
        elif y is not None or sample_weight is not None:
            raise ValueError(
                "A dataset must contain its labels and weights: batches "
                "`(x, y)` or `(x, y, sample_weight)`. Received: a dataset "
                f"x={x!r} and a separate y or sample_weight."
            )
        else:
            self._batches = _Stream(x)

    def __len__(self) -> int:
        return self.recording.num_batches

    def __getitem__(self, index: int) -> Any:
        rows = self.recording.rows(self.epoch, index)
        x, y, weight = self._batches.get(self.epoch, index, rows["sample"])
        x = _recorded_batch.join(
            x, self.recording.drawn_in(rows), self.recording.outputs_in(rows)
        )
        return x if y is None else (x, y) if weight is None else (x, y, weight)


class _Arrays:
    """The data as arrays: batches are taken by the indices of samples."""

    def __init__(self, x, y, sample_weight):
        self.arrays = tree.map_structure(
            lambda leaf: None if leaf is None else np.asarray(leaf),
            (x, y, sample_weight),
        )
        sizes = [
            sorted({len(leaf) for leaf in tree.flatten(a) if leaf is not None})
            for a in self.arrays
        ]
        if any(size not in ([], sizes[0]) for size in sizes):
            raise ValueError(
                "`x`, `y` and `sample_weight` must have the same number of "
                f"rows. Received: {sizes[0]}, {sizes[1]} and {sizes[2]} rows."
            )

    def get(self, epoch, index, samples):
        size = len(tree.flatten(self.arrays[0])[0])
        if samples.max() >= size:
            raise ValueError(
                f"{_sources.OTHER_SAMPLES} Received: {size} samples. Batch "
                f"{index} of epoch {epoch} has sample {samples.max()}."
            )
        return _sources.take(self.arrays, samples)


class _Stream:
    """The data as a stream: each batch is checked against its recorded samples.

    Keras reads the first batches before training, and then again. A stream
    cannot go back, so the first batches are kept.
    """

    _KEPT = 3

    def __init__(self, dataset):
        self.dataset = dataset
        self.epoch, self.next, self.kept = -1, 0, {}

    def get(self, epoch, index, samples):
        if epoch == self.epoch and index in self.kept and index < self.next:
            return self.kept[index]
        while self.epoch < epoch:
            # A resumed run also begins the finished epochs, because a dataset
            # may shuffle whenever an epoch begins.
            self.epoch, self.next, self.kept = self.epoch + 1, 0, {}
            self.iterator = _sources.batches_of(self.dataset)
            if self.epoch < epoch:
                next(self.iterator, None)
        batch = next(self.iterator, None)
        if batch is None or index != self.next:
            raise ValueError(
                f"{_sources.OTHER_SAMPLES} The dataset ended after {self.next} "
                f"batches, but batch {index} is recorded."
            )
        self.next += 1
        unpacked = keras.utils.unpack_x_y_sample_weight(batch)
        if not np.array_equal(_sources.checksums(unpacked[0]), samples):
            raise ValueError(
                f"{_sources.OTHER_SAMPLES} The first difference is in batch "
                f"{index} of epoch {epoch}, counted from 0."
            )
        if index < self._KEPT:
            self.kept[index] = unpacked
        return unpacked


class _SetEpoch(keras.callbacks.Callback):
    """Sets the epoch of a `Replay`."""

    def __init__(self, replay):
        super().__init__()
        self.replay = replay

    def on_epoch_begin(self, epoch, logs=None):
        self.replay.epoch = epoch


# Arguments of `fit()` that would choose other batches than the recorded ones.
_FIXED = ("validation_split", "steps_per_epoch")


def replayed(recording, arguments):
    """Return `fit()`'s arguments with the data replaced by its replay.

    Args:
        recording: a `RecordedTeacher`.
        arguments: dict of `fit()`'s arguments by name.

    Raises:
        ValueError: if an argument chooses other batches than were recorded.
    """
    for name in _FIXED:
        if arguments.get(name):
            raise ValueError(
                f"`{name}` must not be set: it would choose other batches than "
                f"the recorded ones. Received: {name}={arguments[name]}. "
                "Remove it."
            )
    batch_size = arguments.pop("batch_size", None)
    if batch_size not in (None, recording.manifest["batch_size"]):
        raise ValueError(
            f"The recording has batches of {recording.manifest['batch_size']} "
            f"samples. Received: batch_size={batch_size}. Remove it."
        )
    replay = Replay(
        recording,
        arguments.pop("x", None),
        arguments.pop("y", None),
        arguments.pop("sample_weight", None),
    )
    callbacks = arguments.pop("callbacks", None) or []
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    arguments["shuffle"] = False
    return {
        **arguments,
        "x": replay,
        "callbacks": [*callbacks, _SetEpoch(replay)],
    }


def teacher_outputs(recording, recorded):
    """Return recorded outputs in the structure that the teacher returned.

    Args:
        recording: the `RecordedTeacher`.
        recorded: the `RecordedBatch` of a replayed batch, or `None`.

    Raises:
        ValueError: if there are several replicas or processes, or if `fit()`
            did not replay the batch.
    """
    if _backend.num_parts() > 1:
        raise ValueError(
            "A recording must be replayed by one replica in one process, "
            "because it holds the views of whole batches. Received: batches "
            f"that are divided into {_backend.num_parts()} parts. Use one "
            "device, or train with the teacher model itself."
        )
    if recorded is None:
        raise ValueError(
            "A recording is replayed by `fit()`, which joins each batch with "
            "its recorded outputs. Received: a batch without recorded outputs, "
            "for example in `train_on_batch`. Call `fit()`."
        )
    return recording.in_structure(recorded.outputs)
