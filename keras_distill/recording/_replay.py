"""Replay: the dataset that joins the data of `fit()` with recorded rows.

In each of its batches, the inputs travel with what was drawn for the view and
with the teacher's outputs. The training step renders the view from them.
"""

from typing import Any

import keras
import numpy as np
from keras import tree

from keras_distill.recording import _recorded_batch
from keras_distill.recording import _sources
from keras_distill.recording._recorded_batch import share_of
from keras_distill.recording._recorded_teacher import RecordedTeacher


class Replay(keras.utils.PyDataset):
    """The batches of the data of `fit()`, joined with recorded rows.

    Args:
        recording: a `RecordedTeacher`.
        x, y, sample_weight: as for `fit()`.
        share: `(number, count)` of this process; each process gets as many
            consecutive samples of each batch.

    Raises:
        ValueError: if this is not the data of the recording.
    """

    def __init__(
        self,
        recording: RecordedTeacher,
        x: Any,
        y: Any,
        sample_weight: Any,
        share: tuple[int, int],
    ) -> None:
        super().__init__()
        self.recording, self.share = recording, share
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
        share = share_of(len(rows), *self.share)
        x, y, weight = self._batches.get(
            self.epoch, index, rows["sample"], share
        )
        rows = rows[share]
        x = _recorded_batch.join(
            x,
            *self.recording.drawn_rows(rows),
            self.recording.fields_in(rows),
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

    def get(self, epoch, index, samples, share):
        size = len(tree.flatten(self.arrays[0])[0])
        if samples.max() >= size:
            raise ValueError(
                f"{_sources.OTHER_SAMPLES} Received: {size} samples. Batch "
                f"{index} of epoch {epoch} has sample {samples.max()}."
            )
        return _sources.take(self.arrays, samples[share])


class _Stream:
    """The data as a stream: each batch is checked against its recorded samples.

    Keras reads the first batches before training, and then again. A stream
    cannot go back, so the first batches are kept.
    """

    _KEPT = 3

    def __init__(self, dataset):
        self.dataset = dataset
        self.epoch, self.next, self.kept = -1, 0, {}

    def get(self, epoch, index, samples, share):
        return _sources.take(self._whole(epoch, index, samples), share)

    def _whole(self, epoch, index, samples):
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


def replayed(recording, arguments, augment, parts, share):
    """Return `fit()`'s arguments with the data replaced by its replay.

    Args:
        recording: a `RecordedTeacher`.
        arguments: dict of `fit()`'s arguments by name.
        augment: the `ConsistentAugment` of the Distiller, or `None`.
        parts: int, the number of parts of a batch that steps see separately.
        share: `(number, count)` of the processes that read the data.

    Raises:
        ValueError: if an argument chooses other batches than were recorded, or
            if the recording does not fit the parts of a batch.
    """
    _check_parts(recording.manifest, augment, parts)
    _check_shares(recording.manifest, share[1])
    for name in _FIXED:
        if arguments.get(name):
            raise ValueError(
                f"`{name}` must not be set: it would choose other batches than "
                f"the recorded ones. Received: {name}={arguments[name]}. "
                "Remove it."
            )
    _check_batch_size(recording, arguments.pop("batch_size", None))
    replay = Replay(
        recording,
        arguments.pop("x", None),
        arguments.pop("y", None),
        arguments.pop("sample_weight", None),
        share,
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


def _check_batch_size(recording, batch_size):
    recorded = recording.manifest["batch_size"]
    if batch_size in (None, recorded):
        return
    # A larger batch than all samples is the same one batch.
    is_larger = isinstance(batch_size, int) and batch_size > recorded
    if recording.num_batches > 1 or not is_larger:
        raise ValueError(
            f"The recording has batches of {recorded} samples. Received: "
            f"batch_size={batch_size}. Remove it."
        )


def _check_parts(manifest, augment, parts):
    """Raise if the view of a part of a batch depends on the other parts."""
    recorded = manifest["replicas"]
    depends = augment is not None and (
        augment.mixes_labels or not all(manifest["drawn_per_row"].values())
    )
    if parts == recorded or (recorded == 1 and not depends):
        return
    raise ValueError(
        f"The recording was made for {recorded} replicas: its views combine "
        f"samples within each 1/{recorded} of a batch. Received: batches "
        f"divided into {parts} parts. Record the teacher with "
        f"`replicas={parts}`, or train on {recorded} devices. (On JAX, all "
        "devices together count as one replica.)"
    )


def _check_shares(manifest, count):
    rows, size = manifest["rows_per_epoch"], manifest["batch_size"]
    for batch in {min(size, rows), rows % size or size}:
        if batch % count:
            raise ValueError(
                "Each batch of a recording must have the same number of "
                f"samples for each process. Received: a batch of {batch} "
                f"samples and {count} processes. Record batches of another "
                "size, or without the incomplete last batch."
            )


def teacher_outputs(recording, recorded, with_head):
    """Return what a replayed batch holds of the teacher's outputs.

    Args:
        recording: the `RecordedTeacher`.
        recorded: the `RecordedBatch` of a replayed batch, or `None`.
        with_head: bool. Whether to apply the head to hidden states.

    Raises:
        ValueError: if `fit()` did not replay the batch.
    """
    if recorded is None:
        raise ValueError(
            "A recording is replayed by `fit()`, which joins each batch with "
            "its recorded outputs. Received: a batch without recorded outputs, "
            "for example in `train_on_batch`. Call `fit()`."
        )
    return recording.teacher_outputs(recorded.outputs, with_head)
