"""The files of a recording: a manifest and finished shards of rows.

    manifest.json     what was recorded, from what, and which shards are whole
    shard-00000.npy   rows of one NumPy structured array, memory-mapped

A row is one view of one sample: who it is, what was drawn for it, and what the
teacher answered. A shard is written under another name and renamed when it is
whole, and then the manifest counts it; so a process killed at any moment leaves
a recording that is whole up to its last shard.
"""

import json
import pathlib

import numpy as np

from keras_distill import _files

FORMAT = 1
_MANIFEST = "manifest.json"


class Output:
    """How one output of the teacher lies in a row.

    Args:
        name: name of its fields.
        shape: shape of one answer, `(..., classes)`.
        dtype: `"float16"` or `"float32"`.
        top_k: int, or `None` to keep all values. For classes alone.
        from_logits: bool. Whether answers are logits or probabilities.
    """

    def __init__(self, name, shape, dtype, top_k, from_logits):
        self.name, self.shape = name, tuple(shape)
        self.dtype = np.dtype(dtype)
        self.top_k, self.from_logits = top_k, from_logits

    @property
    def fields(self):
        if self.top_k is None:
            return [(self.name, self.dtype, self.shape)]
        kept = (*self.shape[:-1], self.top_k)
        index = "<u2" if self.shape[-1] <= 2**16 else "<u4"
        return [
            (f"{self.name}_classes", index, kept),
            (f"{self.name}_log_probs", self.dtype, kept),
            (f"{self.name}_log_rest", self.dtype, self.shape[:-1]),
        ]

    def write(self, rows, answers):
        """Write answers `(batch, *shape)` into rows.

        Raises:
            ValueError: if the dtype can't hold them.
        """
        if self.top_k is None:
            limit = np.finfo(self.dtype).max
            if np.abs(answers).max(initial=0) > limit:
                raise ValueError(
                    f"The teacher's answers reach {np.abs(answers).max():g}, "
                    f"and {self.dtype.name} ends at {limit:g}. Record with "
                    "`storage_dtype='float32'`."
                )
            rows[self.name] = answers
            return
        log_probs = _log_probs(answers.astype("float64"), self.from_logits)
        classes = np.argsort(-log_probs, axis=-1)[..., : self.top_k]
        kept = np.take_along_axis(log_probs, classes, axis=-1)
        rest = 1.0 - np.exp(kept).sum(axis=-1)
        others = self.shape[-1] - self.top_k
        # 1 - sum is 0 or below it by rounding where the rest is next to none.
        log_rest = np.log(np.maximum(rest, 1e-30) / max(others, 1))
        rows[f"{self.name}_classes"] = classes
        rows[f"{self.name}_log_probs"] = np.maximum(kept, -6e4)
        rows[f"{self.name}_log_rest"] = log_rest

    def read(self, rows):
        """Return the answers `(batch, *shape)` in float32."""
        if self.top_k is None:
            return rows[self.name].astype("float32")
        log_rest = rows[f"{self.name}_log_rest"].astype("float32")
        answers = np.repeat(log_rest[..., np.newaxis], self.shape[-1], axis=-1)
        np.put_along_axis(
            answers,
            rows[f"{self.name}_classes"].astype("int64"),
            rows[f"{self.name}_log_probs"].astype("float32"),
            axis=-1,
        )
        return answers if self.from_logits else np.exp(answers)


def _log_probs(answers, from_logits):
    if not from_logits:
        return np.log(np.maximum(answers, 1e-30))
    peak = answers.max(axis=-1, keepdims=True)
    total = np.log(np.exp(answers - peak).sum(axis=-1, keepdims=True))
    return answers - peak - total


class Shards:
    """The rows on disk, to read and to add to.

    Args:
        path: folder of the recording.
        manifest: dict, as `read_manifest` returned or `write_manifest` took.
    """

    def __init__(self, path, manifest):
        self.path, self.manifest = pathlib.Path(path), manifest
        self.dtype = np.dtype([_field(f) for f in manifest["fields"]])
        self._maps = {}
        for index, shard in enumerate(manifest["shards"]):
            file = self._file(index)
            if not file.exists() or file.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"The shard {file} of the recording is missing or not "
                    f"whole. Expected: {shard['bytes']} bytes. Copy the "
                    "recording again, or record it anew in an empty folder."
                )
        self._ends = np.cumsum([s["rows"] for s in manifest["shards"]] or [0])

    @property
    def num_rows(self):
        return int(self._ends[-1])

    def _file(self, index):
        return self.path / f"shard-{index:05d}.npy"

    def read(self, start, stop):
        """Return a copy of the rows from `start` to `stop`."""
        parts = []
        while start < stop:
            index = int(np.searchsorted(self._ends, start, side="right"))
            if index not in self._maps:
                self._maps[index] = np.load(self._file(index), mmap_mode="r")
            begin = self._ends[index] - self.manifest["shards"][index]["rows"]
            end = min(stop, int(self._ends[index]))
            parts.append(self._maps[index][start - begin : end - begin])
            start = end
        return np.concatenate(parts)

    def append(self, batches, **changes):
        """Write a list of rows as one finished shard.

        Args:
            batches: list of structured arrays.
            **changes: entries of the manifest that change with this shard.
        """
        rows = np.concatenate(batches)
        file = self._file(len(self.manifest["shards"]))
        _files.write(file, lambda out: np.save(out, rows))
        self.manifest["shards"].append(
            {"rows": len(rows), "bytes": file.stat().st_size}
        )
        self.manifest.update(changes)
        write_manifest(self.path, self.manifest)
        self._ends = np.cumsum([s["rows"] for s in self.manifest["shards"]])


def _field(field):
    name, dtype, shape = field
    return name, np.dtype(dtype), tuple(shape)


def fields_of(sample_fields):
    """Return fields in the form that the manifest keeps."""
    return [
        [name, np.dtype(dtype).str, list(shape)]
        for name, dtype, shape in sample_fields
    ]


def read_manifest(path):
    """Return the manifest in a folder, or `None` if there is none.

    Raises:
        ValueError: if it can't be read, or has another format.
    """
    file = pathlib.Path(path) / _MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text())
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not the manifest of a recording. Received: {error}"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{file} has format {version}, and this version of keras-distill "
            f"reads format {FORMAT}. Record the teacher anew."
        )
    # Recordings from before these entries hold outputs of classes.
    manifest.setdefault("predicts", "classes")
    manifest.setdefault("storage_dtype", manifest.get("dtype"))
    manifest.setdefault("endings", [[] for _ in manifest["output_shapes"]])
    return manifest


def write_manifest(path, manifest):
    """Write a manifest, all of it or nothing."""
    text = json.dumps(manifest, indent=1).encode()
    _files.write(pathlib.Path(path) / _MANIFEST, lambda out: out.write(text))
