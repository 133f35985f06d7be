"""The files of a recording: a manifest, and shards of rows.

    manifest.json     what was recorded, and which shards are complete
    shard-00000.npy   rows of one NumPy structured array, memory-mapped
    head.npy          the last layer, if the outputs are hidden states

A row is one view of one sample. Its fields:

    sample            index in the arrays, or checksum of a sample of a stream
    drawn_<name>      what was drawn for the view, such as a window or a flip
    output_<i>        the i-th output of the teacher, or its hidden states

With `top_k`, three fields stand in place of `output_<i>`:

    output_<i>_classes     indices of the `top_k` most probable classes
    output_<i>_log_probs   their log-probabilities
    output_<i>_log_rest    log-probability of each other class

A shard is written under another name and renamed when it is complete. Then the
manifest is replaced by one that lists it. So a process that is killed at any
moment leaves a recording that is valid up to its last complete shard.

Manifest and shards have checksums, which detect damaged files. Files may also
come from anybody: nothing in them is run, no name in them is a path, and they
are mapped into memory only if they have the size that they claim.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill.losses._most_probable import MostProbable
from keras_distill.recording._folders import LocalFolder
from keras_distill.recording._folders import RemoteFolder
from keras_distill.recording._manifest_check import as_field
from keras_distill.recording._manifest_check import check_entries

FORMAT = 1
_MANIFEST = "manifest.json"

Folder = LocalFolder | RemoteFolder


class OutputFields:
    """The fields of a row that hold one output of the teacher.

    Args:
        name: name of the output, which the names of its fields start with.
        shape: shape of the output of one sample, `(..., classes)`.
        dtype: `"float16"` or `"float32"`.
        top_k: int, or `None` to keep all values. For classes only.
        from_logits: bool. Whether outputs are logits or probabilities.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        top_k: int | None,
        from_logits: bool,
    ) -> None:
        self.name, self.shape = name, tuple(shape)
        self.dtype = np.dtype(dtype)
        self.top_k, self.from_logits = top_k, from_logits

    @property
    def fields(self) -> list[tuple]:
        """List of `(name, dtype, shape)`."""
        if self.top_k is None:
            return [(self.name, self.dtype, self.shape)]
        kept = (*self.shape[:-1], self.top_k)
        index = "<u2" if self.shape[-1] <= 2**16 else "<u4"
        return [
            (f"{self.name}_classes", index, kept),
            (f"{self.name}_log_probs", self.dtype, kept),
            (f"{self.name}_log_rest", self.dtype, self.shape[:-1]),
        ]

    def write(self, rows: np.ndarray, outputs: Any) -> None:
        """Write outputs into rows.

        Args:
            rows: structured array `(batch,)`.
            outputs: array `(batch, *shape)`, or with `top_k` a dict as
                `most_probable` returns it.

        Raises:
            ValueError: if they have another shape than the first batch, or
                exceed the range of the dtype.
        """
        if self.top_k is None:
            outputs = {"": self._in_range(outputs)}
        for ending, values in outputs.items():
            name = f"{self.name}_{ending}" if ending else self.name
            if values.shape[1:] != rows[name].shape[1:]:
                raise ValueError(
                    "A teacher's outputs must have one shape in all batches. "
                    f"Received: shape {values.shape[1:]} after "
                    f"{rows[name].shape[1:]}."
                )
            if ending == "log_probs":
                values = np.maximum(values, -6e4)  # finite in float16
            rows[name] = values

    def _in_range(self, outputs):
        largest = np.abs(outputs).max(initial=0)
        limit = np.finfo(self.dtype).max
        if largest > limit:
            raise ValueError(
                f"The teacher's outputs must fit into {self.dtype.name}, whose "
                f"largest value is {limit:g}. Received: outputs up to "
                f"{largest:g}. Record with `storage_dtype='float32'`."
            )
        return outputs

    def read(self, rows: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """Return the outputs `(batch, *shape)` in float32.

        With `top_k`, they are the fields of a `MostProbable`: the whole outputs
        do not exist on the host.

        Raises:
            ValueError: if rows have classes that the outputs do not have.
        """
        if self.top_k is None:
            return rows[self.name].astype("float32")
        classes = rows[f"{self.name}_classes"].astype("int32")
        if classes.max(initial=0) >= self.shape[-1]:
            raise ValueError(
                f"Recorded classes must be below {self.shape[-1]}, the number "
                f"of classes. Received: class {classes.max()}. The recording "
                "is damaged: record again into an empty folder."
            )
        return {
            "classes": classes,
            "log_probs": rows[f"{self.name}_log_probs"].astype("float32"),
            "log_rest": rows[f"{self.name}_log_rest"].astype("float32"),
        }

    def output_of(self, values: Any) -> Any:
        """Return what a loss gets of an output that was read."""
        if self.top_k is None:
            return values
        return MostProbable(values, self.shape[-1], self.from_logits)


def output_fields(manifest):
    """Return the `OutputFields` of each output of a recording."""
    return [
        OutputFields(
            f"output_{index}",
            shape,
            manifest["storage_dtype"],
            manifest["top_k"],
            manifest["from_logits"],
        )
        for index, shape in enumerate(manifest["output_shapes"])
    ]


class Shards:
    """The rows on disk: reads them, and appends shards.

    Args:
        folders: list of the folders that the shards are in, one for each part
            of the recording.
        manifests: list of the dicts of their manifests, see `_manifest.py`.

    Raises:
        ValueError: if a shard of a manifest is missing or truncated. Damage
            inside a shard is found when it is read first.
    """

    def __init__(self, folders: list[Folder], manifests: list[dict]) -> None:
        self._folder, self._manifest = folders[-1], manifests[-1]
        self.dtype = np.dtype([as_field(f) for f in self._manifest["fields"]])
        self._shards = [
            (folder, _name(index), shard)
            for folder, manifest in zip(folders, manifests)
            for index, shard in enumerate(manifest["shards"])
        ]
        self._open: dict[int, np.ndarray] = {}
        for folder, name, shard in self._shards:
            if folder.size(name) != shard["bytes"]:
                raise _unusable(folder, name, f"{shard['bytes']} bytes")
        self._count()

    def _count(self):
        self._ends = np.cumsum([s["rows"] for _, _, s in self._shards] or [0])

    @property
    def num_rows(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return a copy of the rows from `start` to `stop`."""
        parts = []
        while start < stop:
            index = int(np.searchsorted(self._ends, start, side="right"))
            rows = self._rows(index)
            begin = self._ends[index] - len(rows)
            end = min(stop, int(self._ends[index]))
            parts.append(rows[start - begin : end - begin])
            start = end
        return np.concatenate(parts)

    def _rows(self, index):
        """Return the rows of a shard, checked when it is opened."""
        if index in self._open:
            return self._open[index]
        folder, name, shard = self._shards[index]
        rows = checked_rows(
            folder,
            name,
            self.dtype,
            shard["bytes"],
            shard["rows"],
            shard.get("checksum"),  # Older recordings lack it.
        )
        if len(self._open) == folder.max_shards:
            del self._open[next(iter(self._open))]
        self._open[index] = rows
        return rows

    def append(self, batches: list[np.ndarray], **changes: Any) -> None:
        """Write rows as one complete shard.

        Args:
            batches: list of structured arrays.
            **changes: entries of the manifest to update with it.
        """
        rows = np.concatenate(batches)
        name = _name(len(self._shards))
        self._folder.write(name, lambda out: np.save(out, rows))
        shard = {
            "rows": len(rows),
            "bytes": self._folder.size(name),
            "checksum": zlib.crc32(rows.data),
        }
        self._shards.append((self._folder, name, shard))
        self._manifest["shards"].append(shard)
        self._manifest.update(changes)
        write_manifest(self._folder, self._manifest)
        self._count()


def _name(index):
    return f"shard-{index:05d}.npy"


def checked_rows(folder, name, dtype, size, count, checksum):
    """Return the rows at the end of a file.

    Dtype and number are known, so the header of the file is not read.

    Args:
        folder, name: where the file is.
        dtype: dtype of a row.
        size: int, the number of bytes of the file.
        count: int, the number of rows.
        checksum: the checksum of the rows, or `None`.

    Raises:
        ValueError: if the file is too short, or if the checksum differs.
    """
    begin = size - count * dtype.itemsize
    if begin < 0:
        raise _unusable(folder, name, f"{count} rows")
    rows = folder.rows(name, dtype, begin, count)
    if checksum is not None and zlib.crc32(rows.data) != checksum:
        raise _unusable(folder, name, f"checksum {checksum}")
    return rows


def _unusable(folder, name, expected):
    return ValueError(
        f"The file {name} of the recording at {folder} is missing, incomplete "
        f"or damaged. Expected: {expected}. Copy the recording again, or "
        "record again into an empty folder."
    )


def fields_as_json(fields):
    """Return `(name, dtype, shape)` of fields as the manifest keeps them."""
    return [
        [name, np.dtype(dtype).str, list(shape)]
        for name, dtype, shape in fields
    ]


def read_manifest(folder):
    """Return the manifest in a folder, or `None` if there is none.

    Raises:
        ValueError: if it cannot be read, or has another format.
    """
    if folder.size(_MANIFEST) is None:
        return None
    try:
        manifest = json.loads(folder.read(_MANIFEST).decode())
        version, checksum = manifest["format"], manifest.pop("checksum", None)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_a_manifest(folder, error) from error
    if version != FORMAT:
        raise ValueError(
            f"The recording at {folder} has format {version}, and this version "
            f"of keras-distill reads format {FORMAT}. Record the teacher again."
        )
    if checksum not in (None, _checksum(manifest)):
        raise _not_a_manifest(folder, f"checksum {checksum}, so it was changed")
    try:
        # Older recordings lack these entries; their outputs are classes.
        manifest.setdefault("predicts", "classes")
        manifest.setdefault("storage_dtype", manifest.get("dtype"))
        manifest.setdefault("endings", [[] for _ in manifest["output_shapes"]])
        manifest.setdefault("head", None)
        manifest.setdefault("replicas", 1)
        manifest.setdefault("part", None)
        manifest.setdefault("finished", True)
        check_entries(manifest, output_fields)
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_manifest(folder, error) from error
    return manifest


def _not_a_manifest(folder, received):
    return ValueError(
        f"{_MANIFEST} at {folder} is not the manifest of a recording, or it "
        f"was changed. Received: {received}. Copy the recording again, or "
        "record again into an empty folder."
    )


def _checksum(manifest):
    return zlib.crc32(json.dumps(manifest).encode())


def write_manifest(folder, manifest):
    """Replace the manifest in a folder, completely or not at all."""
    manifest = {**manifest, "checksum": _checksum(manifest)}
    text = json.dumps(manifest, indent=1).encode()
    folder.write(_MANIFEST, lambda out: out.write(text))
