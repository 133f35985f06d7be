"""Checks of a manifest that was read: it may come from anybody.

The entries are listed in `_manifest.py`. After these checks, they have the
right types and agree with each other. Whether they agree with the files of the
rows, with a student and with data is checked where those are known.
"""

import numpy as np
from keras import tree


def check_entries(manifest, output_fields):
    """Raise unless a manifest describes a recording.

    Args:
        manifest: what its file contains, of any type.
        output_fields: the function that returns the `OutputFields`.

    Raises:
        KeyError: if an entry is missing.
        TypeError: if an entry has another type, or is of other entries.
        ValueError: if an entry has an invalid value.
    """
    for name, is_valid in _ENTRIES.items():
        _check(name, manifest[name], is_valid(manifest[name]))
    outputs = output_fields(manifest)
    names = [output.name for output in outputs]
    structure = tree.flatten(manifest["structure"])
    _check("structure", structure, sorted(structure) == sorted(names))
    endings = manifest["endings"]
    _check("endings", endings, len(endings) == len(outputs))
    head = manifest["head"]
    if head is not None:
        fits = [o.shape[-1:] for o in outputs] == [(head["width"],)]
        _check("head", head, fits and manifest["top_k"] is None)
    expected = [("sample", np.dtype("<u4"), ())]
    fields = [as_field(field) for field in manifest["fields"]]
    for name in manifest["drawn_per_row"]:
        drawn = [field for field in fields if field[0] == f"drawn_{name}"]
        _check("drawn_per_row", name, len(drawn) == 1)
        _check("fields", drawn, drawn[0][1].kind in "biuf")
        expected += drawn
    for output in outputs:
        shape, top_k = output.shape, output.top_k
        _check("top_k", top_k, top_k is None or top_k <= (0, *shape)[-1])
        expected += output.fields
    _check("fields", fields, fields == expected)


def _check(name, value, is_valid):
    if not is_valid:
        raise ValueError(f"{name}={value!r:.200}")


def as_field(field):
    """Return `(name, dtype, shape)` for NumPy from what JSON contains."""
    name, dtype, shape = field
    return name, np.dtype(dtype), tuple(shape)


def _is_count(value, minimum=1):
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and minimum <= value < 2**63


def _is_count_or_none(value):
    return value is None or _is_count(value)


def _is_dict(*keys):
    return lambda value: isinstance(value, dict) and {*keys} <= {*value}


def _is_list(is_valid):
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _is_ending(value):
    return (
        isinstance(value, dict)
        and {*value} == {"model", "layer", "activation"}
        and all(isinstance(v, (str, type(None))) for v in value.values())
    )


def _is_part(value):
    return (
        _is_list(lambda number: _is_count(number, 0))(value)
        and len(value) == 2
        and value[0] < value[1]
    )


def _is_soft_cap(value):
    return isinstance(value, (int, float)) and 0 < value < 1e9


def _is_head(value):
    return (
        _is_dict(
            *("width", "classes", "bias", "dtype", "soft_cap"),
            *("softmax", "checksum"),
        )(value)
        and all(_is_count(value[name]) for name in ("width", "classes"))
        and all(isinstance(value[name], bool) for name in ("bias", "softmax"))
        and value["dtype"] in ("float16", "bfloat16", "float32", "float64")
        and (value["soft_cap"] is None or _is_soft_cap(value["soft_cap"]))
        and _is_count(value["checksum"], 0)
    )


_ENTRIES = {
    "predicts": lambda value: value in ("classes", "labels", "values"),
    "from_logits": lambda value: isinstance(value, bool),
    "storage_dtype": lambda value: value in ("float16", "float32"),
    "top_k": _is_count_or_none,
    "head": lambda value: value is None or _is_head(value),
    "fingerprint": lambda value: (
        _is_dict("teacher", "data", "augment")(value)
        and _is_dict("members")(value["teacher"])
        and isinstance(value["teacher"]["members"], list)
        and _is_dict("kind")(value["data"])
    ),
    "replicas": _is_count,
    "part": lambda value: value is None or _is_part(value),
    "finished": lambda value: isinstance(value, bool),
    "batch_size": _is_count,
    "output_shapes": _is_list(_is_list(_is_count)),
    "structure": lambda value: all(
        isinstance(leaf, str) for leaf in tree.flatten(value)
    ),
    "endings": _is_list(_is_list(_is_ending)),
    "drawn_per_row": lambda value: (
        isinstance(value, dict)
        and all(isinstance(each, bool) for each in value.values())
    ),
    "fields": _is_list(
        lambda value: (
            isinstance(value, list)
            and len(value) == 3
            and isinstance(value[1], str)
            and _is_list(lambda size: _is_count(size, 0))(value[2])
        )
    ),
    "epochs": _is_count,
    "rows_per_epoch": _is_count_or_none,
    "seed_states": _is_list(_is_list(lambda part: _is_count(part, 0))),
    "shards": _is_list(
        lambda value: (
            _is_dict("rows", "bytes")(value)
            and _is_count(value["rows"])
            and _is_count(value["bytes"])
        )
    ),
}
