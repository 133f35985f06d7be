"""StateFolders: folders that are complete or absent, each with checksums.

A state is written to a folder `unfinished`, synchronised with the disk, and
renamed. A killed process leaves either the old states or the old states and the
new one. `SHA256SUMS` lists the files, in the format of the program `sha256sum`.

Neither Orbax nor `tf.train.Checkpoint` is used: the first needs JAX and the
second TensorFlow, and PyTorch's processes should import neither.
"""

import hashlib
import os
import pathlib
import shutil
import warnings
import weakref
from collections.abc import Callable
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # on Windows, where processes are not kept apart
    fcntl = None  # type: ignore[assignment]

_SUMS = "SHA256SUMS"
_STATE = "state-"
_UNFINISHED = "unfinished"
_LOCK = "lock"


class StateFolders:
    """The states of one run, in one directory.

    Processes that train one model together have a directory each, inside of
    one that all of them can read. They continue from the newest state that all
    of them have.

    Args:
        directory: path of the directory. It is created.
        keep: int, how many of the newest states are kept.
        process: int, the number of this process.
        num_processes: int, how many processes train one model.

    Raises:
        RuntimeError: if another run uses the directory.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int,
        process: int,
        num_processes: int,
    ) -> None:
        self._all = [directory]
        if num_processes > 1:
            self._all = [
                directory / f"process-{number}"
                for number in range(num_processes)
            ]
        self.directory = directory = self._all[process]
        self.keep = keep
        directory.mkdir(parents=True, exist_ok=True)
        lock = _locked(directory / _LOCK)
        # An error may end `fit()`, and nobody closes the file.
        self._unlock = weakref.finalize(self, os.close, lock)
        # What a killed process left behind.
        shutil.rmtree(directory / _UNFINISHED, ignore_errors=True)

    def close(self) -> None:
        """Let other processes use the directory."""
        self._unlock()

    def write(self, name: str, fill: Callable[[pathlib.Path], None]) -> None:
        """Write a state; it counts after `commit()`.

        Args:
            name: what distinguishes the state. Newer states have names that
                come later in the alphabet.
            fill: function that writes the files of a folder.

        Raises:
            OSError: if the state cannot be written, for example because the
                disk is full. The states before it are intact.
        """
        folder = self.directory / _UNFINISHED
        self._name = name
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            _write_sums(folder)
            for path in [*folder.iterdir(), folder]:
                _synchronise(path)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            kept = [path.name for path in _states(self.directory)]
            raise OSError(
                f"The state of the run could not be written to "
                f"{self.directory}: {error}. The states before it are intact: "
                f"{kept}. Make room on the disk, or check the permissions, and "
                "start the same program again: it continues from the newest."
            ) from error

    def commit(self) -> None:
        """Make the state that was written the newest; remove the oldest."""
        target = self.directory / f"{_STATE}{self._name}"
        if target.exists():  # a damaged one
            shutil.rmtree(target)
        os.replace(self.directory / _UNFINISHED, target)
        _synchronise(self.directory)
        for old in _states(self.directory)[self.keep :]:
            # A process that is killed here must not leave half a state.
            os.replace(old, self.directory / _UNFINISHED)
            shutil.rmtree(self.directory / _UNFINISHED)

    def newest(self) -> pathlib.Path | None:
        """Return the newest complete state, or `None` if there are no states.

        Raises:
            ValueError: if there are states, and all of them are damaged, or a
                process has none of them.
        """
        found = [{path.name for path in _states(d)} for d in self._all]
        if not any(found):
            return None
        for name in sorted(set.intersection(*found), reverse=True):
            damages = [_damage(directory / name) for directory in self._all]
            if not any(damages):
                return self.directory / name
            warnings.warn(
                f"The state {name} in {self.directory} is damaged ({damages}), "
                "so the one before it is used.",
                stacklevel=2,
            )
        raise ValueError(
            "No state of the run is complete. Received: "
            f"{[sorted(names) for names in found]} in "
            f"{[str(directory) for directory in self._all]}, all of them "
            "damaged, or not there for every process. Restore one of them from "
            "a copy (a directory that all processes share), or delete the "
            "directory to start the run from its beginning."
        )


def _states(directory):
    """The states in a directory, the newest first."""
    return sorted(directory.glob(f"{_STATE}*"), reverse=True)


def _locked(path):
    """Return a file that only one process can hold; the system frees it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise RuntimeError(
            "Only one run can use a directory of `Resume`. Received: "
            f"{path.parent}, which another process uses. Wait for it, stop it, "
            "or use another directory."
        ) from error
    return file


def _files(folder) -> Iterator[pathlib.Path]:
    return (path for path in sorted(folder.iterdir()) if path.name != _SUMS)


def _sum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_sums(folder):
    lines = [f"{_sum(path)}  {path.name}\n" for path in _files(folder)]
    (folder / _SUMS).write_text("".join(lines))


def _damage(folder):
    """Return what is wrong with a state, or `None`."""
    try:
        lines = (folder / _SUMS).read_text().splitlines()
        expected = dict(reversed(line.split("  ", 1)) for line in lines)
        received = {path.name: _sum(path) for path in _files(folder)}
    except (OSError, ValueError) as error:
        return str(error)
    if set(received) != set(expected):
        return f"files {sorted(received)} in place of {sorted(expected)}"
    wrong = [name for name in received if received[name] != expected[name]]
    return f"wrong checksum of {wrong}" if wrong else None


def _synchronise(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a folder.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
