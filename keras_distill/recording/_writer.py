"""RecordingWriter: runs the teacher on all epochs and writes the rows."""

import time

import keras
import numpy as np
from keras import tree

from keras_distill.recording import _sources
from keras_distill.recording import _storage
from keras_distill.recording._recorded_batch import share_of
from keras_distill.recording._recording_step import RecordingStep

# A shard is complete when it has this many bytes, or took this many seconds. A
# killed process loses at most one shard.
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60


class RecordingWriter:
    """Writes a recording, starting after its last complete shard.

    Args:
        folder: folder of the recording, or of this part of it.
        manifest: dict of the manifest, see `_manifest.py`.
        source: the source of the data, see `_sources.py`.
        step: the `RecordingStep`.
        batches: the numbers of the batches to write, counted over all epochs;
            `None` for all.
    """

    def __init__(
        self,
        folder: _storage.Folder,
        manifest: dict,
        source: _sources.ArraySource | _sources.StreamSource,
        step: RecordingStep,
        batches: range | None,
    ) -> None:
        self._shards = _storage.Shards([folder], [manifest])
        self._folder, self._manifest = folder, manifest
        self._batches = batches
        self._source, self._step = source, step
        self._output_fields = _storage.output_fields(manifest)
        step.seed_states = manifest["seed_states"]
        self._unsaved: list[np.ndarray] = []
        self._since = time.monotonic()

    def write(self, verbose: int) -> None:
        """Write the batches.

        Args:
            verbose: 0 for silence, 1 for a progress bar.

        Raises:
            ValueError: if the data or the teacher's outputs cannot be recorded,
                or if the data differs from what was recorded before.
        """
        done = self._shards.num_rows
        bar = keras.utils.Progbar(
            self._expected_rows(), verbose=verbose, unit_name="view"
        )
        row = 0
        for x, samples in self._read():
            if row >= done:
                self._write_batch(x, samples)
            else:
                self._check_samples(samples, row)
            row += len(samples)
            if row > done:
                bar.update(row)
        self._save()
        self._manifest["finished"] = True
        _storage.write_manifest(self._folder, self._manifest)
        bar.update(row, finalize=True)

    def _expected_rows(self):
        """Return how many rows there will be, `None` if it is unknown."""
        if self._batches is not None:
            return len(self._batches) * self._manifest["batch_size"]
        rows = self._manifest["rows_per_epoch"] or self._source.num_rows
        return rows and rows * self._manifest["epochs"]

    def _read(self):
        """Yield `(x, samples)` of each batch to write."""
        batch = 0
        for epoch in range(self._manifest["epochs"]):
            rows = 0
            for x, samples in self._source.epoch(epoch):
                if self._batches is not None and batch >= self._batches.stop:
                    return
                self._check_size(len(samples), rows)
                rows += len(samples)
                if self._batches is None or batch in self._batches:
                    yield x, samples
                batch += 1
            self._end_epoch(rows)

    def _write_batch(self, x, samples):
        replicas = self._manifest["replicas"]
        for replica in range(replicas):
            part = share_of(len(samples), replica, replicas)
            self._write_view(_sources.take(x, part), samples[part])
        size = sum(part.nbytes for part in self._unsaved)
        seconds = time.monotonic() - self._since
        if size >= SHARD_BYTES or seconds > SHARD_SECONDS:
            self._save()

    def _write_view(self, x, samples):
        run = self._step.run
        if self._manifest["top_k"] is not None:
            run = self._step.run_top_k
        outputs, drawn = run(x)
        rows = np.zeros(len(samples), self._shards.dtype)
        rows["sample"] = samples
        for name, per_row in self._manifest["drawn_per_row"].items():
            values = drawn[name]
            rows[f"drawn_{name}"] = values if per_row else values[np.newaxis]
        if self._manifest["top_k"] is None:
            outputs = tree.flatten(outputs)
        for fields, values in zip(self._output_fields, outputs):
            for values_of_field in tree.flatten(values):
                _check_finite(values_of_field, samples)
            fields.write(rows, values)
        self._unsaved.append(rows)

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
        replicas = self._manifest["replicas"]
        if replicas > 1 and size != expected:
            raise ValueError(
                f"For {replicas} replicas, all batches must have one size. "
                f"Received: a batch of {size} samples in batches of "
                f"{expected}. Leave the incomplete last batch out."
            )
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
