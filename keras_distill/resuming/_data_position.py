"""DataPosition: where a `fit()` is in its data, and how it gets there again.

Keras reads the data through an epoch iterator. Its order depends on how often
the data was read before, and on the global random generators. A resumed run
reads the data again from the beginning of the epoch, with the generators as
they were then, and drops the batches that were trained on.
"""

import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill import _backend
from keras_distill.resuming import _shuffles

_GENERATOR = (
    "The order of the data cannot be restored: a Python generator starts from "
    "its beginning in a resumed run. Received: a generator. Weights, optimizer "
    "and the number of the batch are restored. For the same batches use "
    "arrays, a `PyDataset`, or a `tf.data.Dataset`."
)
_UNSEEDED = (
    "The order of the data cannot be restored: the `tf.data.Dataset` draws "
    "random numbers without a seed. Received: {step}. Call "
    "`keras.utils.set_random_seed(seed)` before you make the dataset, or give "
    "that step a seed."
)


class DataPosition:
    """The position in the data of a `fit()`.

    Args:
        epoch_iterator: Keras's epoch iterator, which is changed to report and
            restore positions.

    Attributes:
        epoch_iterator: as it was passed.
        epoch: int, the epoch that runs. Set it when an epoch begins.
        batches: int, batches of this epoch that were given out.
        total: int, batches that were given out since `fit()` began.
    """

    def __init__(self, epoch_iterator: Any) -> None:
        self.epoch = self.batches = self.total = 0
        self.epoch_iterator = epoch_iterator
        self._adapter = epoch_iterator.data_adapter
        self._kind = type(self._adapter).__name__
        self._enumerate = epoch_iterator._enumerate_iterator
        epoch_iterator._enumerate_iterator = self._run_epoch
        self._sizes_known = epoch_iterator.num_batches is not None
        self._shuffle_seed = None
        if _shuffles.of_arrays_without_seed(epoch_iterator):
            self._shuffle_seed = random.SystemRandom().randrange(2**32)
        self._run_start: Any = None  # random states
        self._epoch_start: Any = None
        self._restored: Any = None
        self._arrived: Any = None
        self._warn()

    def _warn(self):
        if self._kind == "GeneratorDataAdapter":
            warnings.warn(_GENERATOR, stacklevel=2)
        if self._kind == "TFDatasetAdapter":
            step = _shuffles.step_without_seed(self._adapter._dataset)
            if step:
                warnings.warn(_UNSEEDED.format(step=step), stacklevel=2)

    @property
    def num_batches(self) -> int | None:
        """Batches of each epoch; `None` if nobody knows before it ends."""
        # What Keras takes from the first epoch then is one too large.
        return self.epoch_iterator.num_batches if self._sizes_known else None

    def state(self) -> dict[str, Any]:
        """Return the position as plain data."""
        return {
            "batches": self.batches,
            "num_batches": self.epoch_iterator._num_batches,
            "shuffle_seed": self._shuffle_seed,
            "run_start": self._run_start,
            "epoch_start": self._epoch_start,
            "now": self._random_states(),
        }

    def restore(
        self, state: dict[str, Any], arrived: Callable[[], None]
    ) -> None:
        """Continue from a position when the next epoch begins.

        Args:
            state: what `state()` returned.
            arrived: function that is called at the position.
        """
        self._restored, self._arrived = state, arrived
        self._run_start = state["run_start"]
        self._shuffle_seed = state["shuffle_seed"]

    def _run_epoch(self):
        restored, self._restored = self._restored, None
        if restored is None:
            self._epoch_start = self._random_states()
            self._run_start = self._run_start or self._epoch_start
        self.batches = 0
        if restored is not None:
            self._begin_finished_epochs(restored)
            self._epoch_start = restored[
                "epoch_start" if restored["batches"] else "now"
            ]
            self._set_random_states(self._epoch_start)
        if self._shuffle_seed is not None:
            sequence = np.random.SeedSequence([self._shuffle_seed, self.epoch])
            _shuffles.shuffle_again(
                self.epoch_iterator, int(sequence.generate_state(1)[0])
            )
        executions = self._enumerate()
        if restored is not None:
            self._skip(executions, restored["batches"])
            self._arrived()
            self._set_random_states(restored["now"])
        for begin, end, iterator in executions:
            self.batches += self.epoch_iterator.steps_per_execution
            self.total += self.epoch_iterator.steps_per_execution
            yield begin, end, iterator

    def _skip(self, executions, batches):
        """Read batches that the run has seen."""
        while self.batches < batches:
            _, _, iterator = next(executions, (None, None, iter(())))
            self.batches += self.epoch_iterator.steps_per_execution
            for _ in range(self.epoch_iterator.steps_per_execution):
                batch = next(iterator, None)
            if batch is None:
                raise ValueError(
                    "The data must be that of the run which is resumed. "
                    f"Received: an epoch that ends before batch {batches}, "
                    "where the run was saved. Use the same data, or another "
                    "directory."
                )

    def _begin_finished_epochs(self, restored):
        """Bring the data to where the epochs before this one left it."""
        iterator, adapter = self.epoch_iterator, self._adapter
        if iterator.steps_per_epoch:
            # One iterator for the whole run: all of it is read again.
            self._set_random_states(restored["run_start"])
            for _ in range(self.epoch):
                self._skip(self._enumerate(), iterator.num_batches)
                self.batches = 0
        elif self._kind == "PyDatasetAdapter":
            for _ in range(self.epoch):
                adapter.py_dataset.on_epoch_begin()
                adapter.py_dataset.on_epoch_end()
        elif self._kind == "TFDatasetAdapter":
            # Its shuffles go on each time when a reading begins. On TensorFlow,
            # Keras also begins at the end of each epoch of known size.
            dataset, readings = adapter._dataset, self.epoch
            if keras.backend.backend() == "tensorflow":
                dataset = iterator._get_iterator()
                readings *= 1 + self._sizes_known
            for _ in range(readings):
                iter(dataset)
        iterator._num_batches = restored["num_batches"]

    def _random_states(self):
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "backend": _backend.global_random_state(),
            "loader": _shuffles.loader_states(self._adapter),
        }

    def _set_random_states(self, states):
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        _backend.set_global_random_state(states["backend"])
        _shuffles.set_loader_states(self._adapter, states["loader"])
