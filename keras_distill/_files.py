"""Files that are whole or not there."""

import os
import pathlib


def writable(path):
    """Return the path of a file that can be written.

    Raises:
        ValueError: if it is a folder, or in a folder that does not exist.
    """
    path = pathlib.Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            "`path` must be the name of a file in a folder that exists. "
            f"Received: {path}"
        )
    return path


def write(path, fill):
    """Write a file that takes the place of an older one when it is whole.

    Args:
        path: a `pathlib.Path`.
        fill: a function that writes to the open file it is given.
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
