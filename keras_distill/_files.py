"""Files that are written completely or not at all."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO


def writable(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the path of a file that can be written.

    Args:
        path: name of a file, in a folder that exists.

    Raises:
        ValueError: if `path` is a folder, or its folder does not exist.
    """
    path = pathlib.Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            "`path` must be the name of a file in a folder that exists. "
            f"Received: {path}"
        )
    return path


def write(path: pathlib.Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file. An older file is replaced when the new one is complete.

    Args:
        path: path of the file.
        fill: function that gets the open file and writes its content.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as out:
            fill(out)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)
