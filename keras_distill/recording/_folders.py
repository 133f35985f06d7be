"""Folders of recordings: of this machine, or of any storage that fsspec knows.

Both have the same methods. A file is complete or absent.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any
from typing import BinaryIO

import numpy as np

from keras_distill import _files


def folder_of(path: str | os.PathLike[str]) -> "LocalFolder | RemoteFolder":
    """Return the folder at a path, or at a URL such as `"s3://bucket/folder"`.

    Raises:
        ImportError: if a URL is given, and fsspec or the package of its storage
            is not installed.
    """
    if isinstance(path, str) and ("://" in path or "::" in path):
        return RemoteFolder(path)
    return LocalFolder(path)


class LocalFolder:
    """A folder of this machine. Rows are mapped into memory.

    Args:
        path: path of the folder.
    """

    # How many shards are open at the same time.
    max_shards: int | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)

    def __str__(self) -> str:
        return str(self._path)

    def create(self) -> None:
        """Create the folder, and the folders that it is in."""
        self._path.mkdir(parents=True, exist_ok=True)

    def child(self, name: str) -> "LocalFolder":
        """Return a folder in this one."""
        return LocalFolder(self._path / name)

    def size(self, name: str) -> int | None:
        """Return the number of bytes of a file, `None` if it is absent."""
        file = self._path / name
        return file.stat().st_size if file.exists() else None

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self._path / name).read_bytes()

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Write a file, or replace it.

        Args:
            name: name of the file.
            fill: function that gets the open file and writes its content.
        """
        _files.write(self._path / name, fill)

    def rows(
        self, name: str, dtype: np.dtype, begin: int, count: int
    ) -> np.ndarray:
        """Return `count` rows of a file, from the byte `begin`."""
        return np.memmap(self._path / name, dtype, "r", begin, (count,))


class RemoteFolder:
    """A folder of a storage that fsspec knows. Shards are read as a whole.

    Args:
        url: URL of the folder, for example `"gs://bucket/folder"`.
    """

    # A batch lies in one shard, or at the end of one and the start of another.
    max_shards: int | None = 2

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ImportError(
                f"A URL as path requires fsspec. Received: {url!r}. Install "
                "it: `pip install keras-distill[fsspec]`."
            ) from error
        self._url = url
        self._storage, self._path = fsspec.core.url_to_fs(url)

    def __str__(self) -> str:
        return self._url

    def create(self) -> None:
        self._storage.makedirs(self._path, exist_ok=True)

    def child(self, name: str) -> "RemoteFolder":
        return RemoteFolder(f"{self._url.rstrip('/')}/{name}")

    def size(self, name: str) -> int | None:
        file = self._file(name)
        return self._storage.size(file) if self._storage.exists(file) else None

    def read(self, name: str) -> bytes:
        with self._storage.open(self._file(name), "rb") as file:
            return file.read()

    def write(self, name: str, fill: Callable[[Any], object]) -> None:
        # Some storages have a file while it is written, others afterwards.
        unfinished = self._file(f"{name}.unfinished")
        with self._storage.open(unfinished, "wb") as out:
            fill(out)
        self._storage.mv(unfinished, self._file(name))

    def rows(
        self, name: str, dtype: np.dtype, begin: int, count: int
    ) -> np.ndarray:
        return np.frombuffer(self.read(name), dtype, count, begin)

    def _file(self, name):
        return f"{self._path.rstrip('/')}/{name}"
