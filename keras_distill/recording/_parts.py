"""Parts: several processes or machines write one recording.

Each part is a recording of consecutive batches in a folder of its own,
`part-<number>`. Together, they are read as one recording.
"""

from typing import Any

from keras_distill.recording import _storage
from keras_distill.recording._folders import LocalFolder
from keras_distill.recording._folders import RemoteFolder

# The entries of a manifest in which parts differ.
_OWN = ("part", "finished", "seed_states", "shards", "rows_per_epoch")


def check_part(part: Any) -> tuple[int, int] | None:
    """Return `part` as a tuple, if it is valid.

    Raises:
        ValueError: unless it is `None` or two integers, `0 <= number < count`.
    """
    if part is None:
        return None
    is_pair = isinstance(part, (tuple, list)) and len(part) == 2
    if not is_pair or not all(type(each) is int for each in part):
        raise ValueError(
            "`part` must be two integers, the number of this part, from 0, and "
            f"the number of parts. Received: part={part!r}"
        )
    number, count = part
    if not 0 <= number < count:
        raise ValueError(
            "The number of a part must be at least 0 and below the number of "
            f"parts, {count}. Received: part={part!r}"
        )
    return number, count


def folder_of_part(
    folder: LocalFolder | RemoteFolder, part: tuple[int, int] | None
) -> LocalFolder | RemoteFolder:
    """Return the folder to write a part to.

    Args:
        folder: folder of the whole recording.
        part: `(number, count)`, or `None` to write all of it.

    Raises:
        ValueError: if the folder holds a recording in other parts.
    """
    whole, first = _storage.read_manifest(folder), _manifest(folder, 0)
    there = None if whole else first and first["part"][1]
    wanted = part and part[1]
    if (whole or first) and there != wanted:
        raise ValueError(
            f"The folder {folder} holds a recording in {there or 1} parts. "
            f"Received: part={part}. Use the same number of parts, or an empty "
            "folder."
        )
    return folder if part is None else _child(folder, part[0])


def batches_of_part(part: tuple[int, int], num_batches: int) -> range:
    """Return the numbers of the batches of a part, of `num_batches` in all."""
    number, count = part
    return range(
        num_batches * number // count, num_batches * (number + 1) // count
    )


def read_recording(
    folder: LocalFolder | RemoteFolder,
) -> tuple[dict, _storage.Shards]:
    """Return the manifest and the shards of a whole recording.

    Raises:
        ValueError: if there is no complete recording.
    """
    manifest = _storage.read_manifest(folder)
    folders, manifests = [folder], [manifest]
    if manifest is None:
        folders, manifests = _all_parts(folder)
        manifest = {
            **manifests[0],
            "rows_per_epoch": sum(
                shard["rows"] for part in manifests for shard in part["shards"]
            )
            // manifests[0]["epochs"],
        }
    shards = _storage.Shards(folders, manifests)
    rows = manifest["rows_per_epoch"]
    if not rows or shards.num_rows != rows * manifest["epochs"]:
        raise ValueError(
            f"The recording at {folder} is not finished: {shards.num_rows} "
            "views are there. Call `record_teacher` again with the same "
            "arguments to continue."
        )
    return manifest, shards


def _all_parts(folder):
    first = _manifest(folder, 0)
    if first is None:
        raise ValueError(
            "`path` must be the folder of a recording. Received: "
            f"{str(folder)!r}. There is no recording there. Make one with "
            "`record_teacher(teacher, dataset, path)`."
        )
    _, count = first["part"]
    manifests = []
    for number in range(count):
        manifest = _manifest(folder, number) if number else first
        if manifest is None or not manifest["finished"]:
            raise ValueError(
                f"The recording at {folder} is not finished: part {number} of "
                f"{count} is missing or not complete. Call `record_teacher` "
                f"with part=({number}, {count}) and else the same arguments."
            )
        _check_part(folder, manifest, number, count)
        for name, value in manifest.items():
            if name not in _OWN and value != first[name]:
                raise ValueError(
                    f"All parts of a recording must have the same {name}. "
                    f"Received at {folder}: {value} in part {number}, "
                    f"{first[name]} in part 0. Record part {number} again into "
                    "an empty folder."
                )
        manifests.append(manifest)
    return [_child(folder, number) for number in range(count)], manifests


def _child(folder, number):
    return folder.child(f"part-{number}")


def _manifest(folder, number):
    """Return the manifest of a part, `None` if there is none.

    Raises:
        ValueError: if it is the manifest of a whole recording.
    """
    manifest = _storage.read_manifest(_child(folder, number))
    if manifest is not None and manifest["part"] is None:
        _check_part(folder, manifest, number, "several")
    return manifest


def _check_part(folder, manifest, number, count):
    if manifest["part"] != [number, count]:
        raise ValueError(
            f"{_child(folder, number)} must hold part {number} of {count} of a "
            f"recording. Received: part={manifest['part']}. Copy the recording "
            "again, or record the part again into an empty folder."
        )
