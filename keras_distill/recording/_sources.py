"""Data sources: the batches of the data, and which samples are in them.

A recorded output belongs to one sample in one batch. So a recording identifies
its data: arrays by a checksum and an order that is drawn from a seed, streams
by a checksum of each sample as it is read.
"""

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

# How many values of a sample its checksum covers, evenly spaced. Checksums are
# also computed during training, so they must be fast.
_CHECKSUM_VALUES = 1024

OTHER_SAMPLES = (
    "The data are not those of the recording, or come in another order. A "
    "recorded output is valid for its own sample only. Pass the same arrays, "
    "or the same dataset with the same fixed seed for its shuffling."
)


def source_of(dataset, batch_size, seed):
    """Return the source for arrays, or for anything that yields batches.

    Args:
        dataset: array, or dict or tuple of arrays of one length; or an iterable
            of batches `x`, `(x, y)` or `(x, y, sample_weight)` that can be read
            again from the start (`tf.data.Dataset`, `keras.utils.PyDataset`,
            PyTorch `DataLoader`, list of batches).
        batch_size: int, for arrays.
        seed: int that shuffles arrays again in each epoch; `None` keeps their
            order.

    Raises:
        ValueError: if there is no data, or if it can be read only once.
    """
    leaves = tree.flatten(dataset)
    if not isinstance(dataset, list) and leaves and all(map(_is_array, leaves)):
        return ArraySource(dataset, batch_size, seed)
    if _is_read_once(dataset):
        raise ValueError(
            "A recording reads its data once per epoch, and later again to "
            "replay it. Received an iterator, which ends after one pass: "
            f"{dataset!r}. Pass arrays, or a dataset that can be read again."
        )
    return StreamSource(dataset)


def _is_read_once(dataset):
    """Return whether `dataset` is an iterator, or not iterable at all."""
    if isinstance(dataset, keras.utils.PyDataset):
        return False
    return not hasattr(dataset, "__iter__") or hasattr(dataset, "__next__")


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


class ArraySource:
    """Arrays, read in an order that is drawn from a seed and the epoch."""

    def __init__(self, arrays: Any, batch_size: int, seed: int | None) -> None:
        self.arrays = tree.map_structure(np.asarray, arrays)
        lengths = {len(array) for array in tree.flatten(self.arrays)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "Arrays of a dataset must have one length, above 0. "
                f"Received lengths: {sorted(lengths)}"
            )
        (self.num_rows,) = lengths
        self.batch_size, self.seed = batch_size, seed

    @property
    def fingerprint(self) -> dict:
        leaves = tree.flatten(self.arrays)
        checksum = 0
        for leaf in leaves:
            checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
        return {
            "kind": "arrays",
            "shapes": [list(leaf.shape) for leaf in leaves],
            "dtypes": [str(leaf.dtype) for leaf in leaves],
            "checksum": checksum,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def epoch(self, index: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield `(x, indices of the samples)` for each batch of an epoch."""
        order = np.arange(self.num_rows)
        if self.seed is not None:
            generator = np.random.default_rng([self.seed, index])
            order = generator.permutation(self.num_rows)
        for start in range(0, self.num_rows, self.batch_size):
            rows = order[start : start + self.batch_size]
            yield take(self.arrays, rows), rows.astype("uint32")

    def first_inputs(self) -> Any:
        """Return the inputs of the first batch."""
        return next(self.epoch(0))[0]

    @property
    def num_batches(self) -> int:
        """The number of batches of an epoch."""
        return -(-self.num_rows // self.batch_size)


class StreamSource:
    """Batches of a dataset that decides their order itself."""

    num_rows = None  # unknown before an epoch was read

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._begun: Iterator[Any] | None = None

    @property
    def fingerprint(self) -> dict:
        # The samples of a stream are checked one by one.
        return {"kind": "stream"}

    def epoch(self, index: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield `(x, checksums of the samples)` for each batch of an epoch."""
        batches = self._begun or batches_of(self.dataset)
        self._begun = None
        for batch in batches:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            yield x, checksums(x)

    def first_inputs(self) -> Any:
        """Return the inputs of the first batch, which the first epoch repeats.

        A second reading of the dataset would have another order, if it
        shuffles.

        Raises:
            ValueError: if the dataset is empty.
        """
        batches = batches_of(self.dataset)
        first = next(batches, None)
        if first is None:
            raise ValueError(
                "The dataset must have batches to record. Received: no batches "
                f"from {self.dataset!r}"
            )
        self._begun = itertools.chain([first], batches)
        return keras.utils.unpack_x_y_sample_weight(first)[0]

    @property
    def num_batches(self) -> int:
        """The number of batches of an epoch.

        Raises:
            ValueError: if the dataset does not know it.
        """
        if isinstance(self.dataset, keras.utils.PyDataset):
            return self.dataset.num_batches
        try:
            return len(self.dataset)
        except TypeError as error:
            raise ValueError(
                "`part` requires a dataset that knows its number of batches. "
                f"Received: {self.dataset!r}, whose number is unknown. For a "
                "`tf.data.Dataset`, call "
                "`.apply(tf.data.experimental.assert_cardinality(n))`."
            ) from error


def take(arrays, rows):
    """Return these rows of every array, `None` where there is no array."""
    return tree.map_structure(
        lambda array: None if array is None else array[rows], arrays
    )


def batches_of(dataset):
    """Yield the batches of one pass as NumPy arrays."""
    if isinstance(dataset, keras.utils.PyDataset):
        for index in range(dataset.num_batches):
            yield _to_numpy(dataset[index])
        dataset.on_epoch_end()
    else:
        yield from map(_to_numpy, dataset)


def _to_numpy(batch):
    return tree.map_structure(
        lambda leaf: None if leaf is None else np.asarray(leaf), batch
    )


def checksums(x):
    """Return a checksum of each sample, uint32 `(batch,)`."""
    parts = []
    for leaf in tree.flatten(x):
        flat = leaf.reshape(len(leaf), -1)
        step = max(1, flat.shape[1] // _CHECKSUM_VALUES)
        part = np.ascontiguousarray(flat[:, ::step])
        parts.append(part.view("uint8").reshape(len(leaf), -1))
    return np.array(
        [zlib.crc32(row) for row in np.concatenate(parts, axis=1)], "uint32"
    )
