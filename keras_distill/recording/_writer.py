"""RecordingWriter: runs the teacher on all epochs and writes the rows."""

import pathlib
import time

import keras
import numpy as np
from keras import tree

from keras_distill.recording import _sources
from keras_distill.recording import _storage
from keras_distill.recording._recording_step import RecordingStep

# A shard is complete when it has this many bytes, or took this many seconds. A
# killed process loses at most one shard.
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60


class RecordingWriter:
    """Writes a recording, starting after its last complete shard.

    Args:
        path: folder of the recording.
        manifest: dict of the manifest, see `_manifest.py`.
        source: the source of the data, see `_sources.py`.
        step: the `RecordingStep`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        manifest: dict,
        source: _sources.ArraySource | _sources.StreamSource,
        step: RecordingStep,
    ) -> None:
        self._shards = _storage.Shards(path, manifest)
        self._manifest = manifest
        self._source, self._step = source, step
        self._output_fields = _storage.output_fields(manifest)
        step.seed_states = manifest["seed_states"]
        self._unsaved: list[np.ndarray] = []
        self._since = time.monotonic()

    def write(self, verbose: int) -> None:
        """Write all epochs of the manifest.

        Args:
            verbose: 0 for silence, 1 for a progress bar.

        Raises:
            ValueError: if the data or the teacher's outputs cannot be recorded,
                or if the data differs from what was recorded before.
        """
        manifest, done = self._manifest, self._shards.num_rows
        per_epoch = manifest["rows_per_epoch"] or self._source.num_rows
        bar = keras.utils.Progbar(
            per_epoch and per_epoch * manifest["epochs"],
            verbose=verbose,
            unit_name="view",
        )
        row = 0
        for epoch in range(manifest["epochs"]):
            begin = row
            for x, samples in self._source.epoch(epoch):
                self._check_size(len(samples), row - begin)
                if row >= done:
                    self._write_batch(x, samples)
                else:
                    self._check_samples(samples, row)
                row += len(samples)
                if row > done:
                    bar.update(row)
            self._end_epoch(row - begin)
        self._save()
        _storage.write_manifest(self._shards.path, manifest)
        bar.update(row, finalize=True)

    def _write_batch(self, x, samples):
        outputs, drawn = self._step.run(x)
        rows = np.zeros(len(samples), self._shards.dtype)
        rows["sample"] = samples
        for name, per_row in self._manifest["drawn_per_row"].items():
            values = drawn[name]
            rows[f"drawn_{name}"] = values if per_row else values[np.newaxis]
        for fields, values in zip(self._output_fields, tree.flatten(outputs)):
            _check_finite(values, samples)
            _check_shape(values.shape[1:], fields.shape)
            fields.write(rows, values)
        self._unsaved.append(rows)
        size = sum(part.nbytes for part in self._unsaved)
        seconds = time.monotonic() - self._since
        if size >= SHARD_BYTES or seconds > SHARD_SECONDS:
            self._save()

    def _save(self):
        if self._unsaved:
            self._shards.append(
                self._unsaved,
                seed_states=[s.tolist() for s in self._step.seed_states],
            )
        self._unsaved, self._since = [], time.monotonic()

    def _end_epoch(self, num_rows):
        expected = self._manifest["rows_per_epoch"]
        if num_rows == 0 or expected not in (None, num_rows):
            raise ValueError(
                "Each epoch of a recording must have the same samples. "
                f"Received: {num_rows} samples after epochs of {expected}."
            )
        self._manifest["rows_per_epoch"] = num_rows

    def _check_size(self, size, rows_before):
        expected = self._manifest["batch_size"]
        if size > expected or rows_before % expected:
            raise ValueError(
                "All batches of an epoch except the last must have one size. "
                f"Received: a batch of {size} samples after {rows_before} "
                f"samples in batches of {expected}."
            )

    def _check_samples(self, samples, row):
        """Raise if data that was recorded before has changed."""
        recorded = self._shards.read(row, row + len(samples))["sample"]
        if not np.array_equal(recorded, samples):
            raise ValueError(_sources.OTHER_SAMPLES)


def _check_finite(values, samples):
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"The teacher returned NaN or infinity for {bad.sum()} samples of "
            f"a batch, such as {samples[bad][:5].tolist()}. Check the teacher "
            "on these samples, and whether its inputs have the range and "
            "preprocessing that it was trained with. The batches recorded "
            "before are kept."
        )


def _check_shape(shape, expected):
    if shape != expected:
        raise ValueError(
            "A teacher's outputs must have one shape in all batches. Received: "
            f"shape {shape} after {expected}."
        )
