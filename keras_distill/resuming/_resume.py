"""Resume: a callback with which a killed `fit()` goes on, step for step."""

import json
import os
import pathlib
import signal
import sys
import threading
from typing import Any

import keras
import numpy as np

from keras_distill import _arguments
from keras_distill import _backend
from keras_distill._keras_internals import build_for
from keras_distill._keras_internals import running_fit
from keras_distill._keras_internals import set_initial_epoch
from keras_distill.resuming import _run_state
from keras_distill.resuming._data_position import DataPosition
from keras_distill.resuming._plain_values import decode
from keras_distill.resuming._plain_values import encode
from keras_distill.resuming._state_folders import StateFolders

_FORMAT = 1
_STATE, _ARRAYS = "state.json", "arrays.npz"


class Resume(keras.callbacks.Callback):
    """Saves the state of a `fit()`, and continues it when it starts again.

    Start the same program again after it was killed: the run continues at the
    step where it was saved, and ends like a run that was never stopped; on
    processors bit by bit. It works in the `fit()` of a `Distiller` and of every
    other Keras model.

    A state holds the weights, the optimizer, the metrics, the random
    generators of the model and of Python, NumPy and PyTorch, the changed
    attributes of the other callbacks, and the position in the data. The data is
    read again from the beginning of the epoch, and batches that were trained on
    are dropped. A `PyDataset` must return the same batch for the same epoch and
    index.

    On SIGTERM, which most clusters send before they stop a job, the state is
    saved after the current batch, and the process ends with status 143.

    A finished run is finished: the same `fit()` returns at once, with the
    trained weights. A larger `epochs` continues it, unless a callback stopped
    it. Use another directory for another run.

    Args:
        directory: path of a directory, which is created. One run can use it at
            a time. Processes that train one model together must share it; each
            writes to a folder of its own.
        save_freq: `"epoch"`, or int >= 1: save after so many batches.
        keep: int >= 1, how many of the newest states are kept. If the newest is
            damaged, the one before is used, with a warning. Several processes
            need at least 2, because they are not killed at the same moment.

    Raises:
        ValueError: if an argument is out of range; in `fit()` if the states are
            of another model, the data is not that of the run, or all states are
            damaged.
        RuntimeError: in `fit()`, if another run uses the directory.
        OSError: in `fit()`, if a state cannot be written. The states before it
            are intact.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import Distiller, Resume

    def mlp(units):
        return keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(units, "relu"),
             keras.layers.Dense(3)]
        )

    x = np.random.rand(64, 8).astype("float32")
    distiller = Distiller(student=mlp(4), teacher=mlp(64))
    distiller.compile("adam")
    distiller.fit(x, epochs=2, verbose=0, callbacks=[Resume("run")])
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        keep: int = 2,
    ) -> None:
        super().__init__()
        is_count = type(save_freq) is int and save_freq >= 1
        if save_freq != "epoch" and not is_count:
            raise ValueError(
                '`save_freq` must be "epoch" or a number of batches >= 1. '
                f"Received: save_freq={save_freq!r}"
            )
        self.directory = pathlib.Path(directory)
        self.save_freq = save_freq
        self.keep = _arguments.positive_int("keep", keep)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        epoch_iterator, callbacks = running_fit(sys._getframe())
        process, num_processes = _backend.process(self._model)
        self._folders = StateFolders(
            self.directory, self.keep, process, num_processes
        )
        self._position = DataPosition(epoch_iterator)
        self._total_saved = 0
        self._due = self._written = False
        self._state: Any = None
        self._folder: Any = self._folders.newest()
        if self._folder is not None:
            self._state = _read(self._folder)
            build_for(self.model, epoch_iterator)
            last = self._state["finished"] and self.params["epochs"]
            set_initial_epoch(self._model, last or self._state["epoch"])
        # What is restored, all other callbacks find. What they change is saved.
        self._others = [c for c in callbacks.callbacks if c is not self]
        callbacks.callbacks = [_Before(self), *self._others, self]
        self._callback_states: Any = None
        self._catch_sigterm()

    @property
    def was_finished(self) -> bool:
        """Whether there was nothing left to train, when `fit()` ends."""
        return self._state is not None

    def restore(self) -> None:
        """Restore model and callbacks, after every `on_train_begin`."""
        if self._callback_states is not None:
            return
        self._callback_states = _run_state.CallbackStates(self._others)
        if self._state is not None:
            _run_state.read_model(
                self.model,
                self._folder,
                self._state["model"],
                self._state["position"]["batches"]
                // self._model.steps_per_execution,
            )
            self._callback_states.restore(self._state["callbacks"])

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._position.epoch = epoch
        state = self._state
        if state is not None:
            set_initial_epoch(self._model, None)
            self._position.restore(state["position"], self._arrived)
            if state["position"]["batches"]:
                # The other callbacks saw this epoch begin before.
                self._callback_states.restore(state["callbacks"])

    def _arrived(self):
        """Restore the metrics of the epoch that continues."""
        state, self._state = self._state, None
        if state["position"]["batches"]:
            _run_state.read_metrics(self.model, state["model"])

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        position = self._position
        self._commit()  # The epoch did not end with the batch before.
        if isinstance(self.save_freq, int):
            self._due |= position.total - self._total_saved >= self.save_freq
        # A run cannot continue an epoch that has no batches left. The state
        # after the last one is saved at the end of the epoch.
        if self._due and position.batches != position.num_batches:
            self._write(position.epoch, position.batches)
            if position.num_batches is not None:
                self._commit()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        stopped = self._model.stop_training
        last = epoch + 1 == self.params["epochs"]
        if self.save_freq == "epoch" or self._due or stopped or last:
            self._write(epoch + 1, 0, finished=stopped)
            self._commit()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.was_finished:
            set_initial_epoch(self._model, None)
        self._release_sigterm()
        self._folders.close()

    def _write(self, epoch, batches, finished=False):
        model = self.model  # On JAX, this brings its variables up to date.

        def fill(folder):
            arrays: dict[str, np.ndarray] = {}
            state = encode(
                {
                    "format": _FORMAT,
                    "epoch": epoch,
                    "finished": finished,
                    "position": {**self._position.state(), "batches": batches},
                    "model": _run_state.write_model(model, folder),
                    "callbacks": self._callback_states.values(),
                },
                arrays,
            )
            (folder / _STATE).write_text(json.dumps(state))
            with open(folder / _ARRAYS, "wb") as file:
                np.savez(file, **arrays)

        self._folders.write(f"{epoch:06d}-{batches:09d}", fill)
        self._total_saved = self._position.total
        self._written = True

    def _commit(self):
        if self._written:
            self._folders.commit()
            self._written = self._due = False
            if self._terminated:
                self._end()

    def _catch_sigterm(self):
        self._terminated = False
        self._handler: Any = None
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            self._handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _release_sigterm(self):
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def _on_sigterm(self, number, frame):
        # An error may have ended `fit()` without `on_train_end`.
        if running_fit(frame, required=False) is None:
            self._end()
        self._due = self._terminated = True

    def _end(self):
        self._release_sigterm()
        if callable(self._handler):
            self._handler(signal.SIGTERM, None)
        raise SystemExit(128 + signal.SIGTERM)


class _Before(keras.callbacks.Callback):
    """Runs before all other callbacks, and lets a `Resume` restore the run."""

    def __init__(self, resume: Resume) -> None:
        super().__init__()
        self.resume = resume

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.resume.restore()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.resume.restore()
        model = self.resume.model
        if self.resume.was_finished:
            model.optimizer.finalize_variable_values(model.trainable_weights)


def _read(folder):
    """Return the state in a folder.

    Raises:
        ValueError: if another version of the library wrote it.
    """
    encoded = json.loads((folder / _STATE).read_text())
    if encoded["format"] != _FORMAT:
        raise ValueError(
            f"The state {folder} must have the format {_FORMAT}. Received: "
            f"format {encoded['format']}. Resume with the version of "
            "keras-distill that wrote it, or use another directory."
        )
    with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
        return decode(encoded, arrays)
