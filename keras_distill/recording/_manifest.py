"""What the manifest of a recording says: of the teacher, the data, the rows."""

import zlib

import keras
import numpy as np
from keras import tree

from keras_distill._graphs import _outputs
from keras_distill.losses._value_checks import contradicts
from keras_distill.recording import _storage
from keras_distill.recording._recorded_teacher import augment_fingerprint
from keras_distill.recording._recorded_teacher import outputs_of
from keras_distill.teachers import _torch_modules


def header_of(live, source, augment, options):
    """Return what must be the same whenever a recording goes on.

    Args:
        live: the `LiveTeacher`.
        source: the source of the data.
        augment: `ConsistentAugment` or `None`.
        options: dict of the arguments of `record_teacher` that are kept.
    """
    dtype = options.pop("teacher_dtype")
    return {
        "format": _storage.FORMAT,
        **options,
        "fingerprint": {
            "teacher": _fingerprint(live, dtype),
            "data": source.fingerprint,
            "augment": augment_fingerprint(augment),
            "keras": keras.__version__,
        },
    }


def _fingerprint(live, dtype):
    values = [
        np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).view("uint8")
        for variable in live.weights
    ]
    for part in (*live.members, live.preprocessing):
        if not isinstance(part, keras.layers.Layer):
            for module in _torch_modules.modules_of(part):
                values += _torch_modules.values_of(module)
    checksum = 0
    for value in values:
        checksum = zlib.crc32(value, checksum)
    return {
        "members": [type(member).__name__ for member in live.members],
        "checksum": checksum,
        "dtype": dtype,
    }


def check_same(path, manifest, header):
    """Raise if a folder holds a recording of something else."""
    recorded = {**manifest, **manifest["fingerprint"]}
    for key, value in {**header, **header["fingerprint"]}.items():
        if key != "fingerprint" and recorded[key] != value:
            raise ValueError(
                f"The folder {str(path)!r} holds another recording. Its "
                f"{key} is {recorded[key]}. Received: {value}. Record into "
                "an empty folder."
            )


def describe(labeller, x, header):
    """Return what the manifest says of the rows, from a first batch."""
    states = labeller.seed_states
    answers, drawn = labeller.label(x)
    labeller.seed_states = states
    flat = tree.flatten(answers)
    if len(flat) == 1:  # Several may be of several kinds.
        _check_values(flat[0], header)
    manifest = {
        "batch_size": len(tree.flatten(x)[0]),
        "output_shapes": [list(output.shape[1:]) for output in flat],
        "structure": _names_in_structure(answers),
        "endings": _endings(labeller.live.members, len(flat)),
        "drawn_per_row": labeller.per_row(x),
        "rows_per_epoch": None,
        "seed_states": [state.tolist() for state in states],
        "shards": [],
    }
    fields = [("sample", "<u4", ())]
    for name, per_row in manifest["drawn_per_row"].items():
        values = drawn[name]
        shape = values.shape[1:] if per_row else values.shape
        fields.append((f"drawn_{name}", _small(values.dtype), shape))
    for output in outputs_of({**header, **manifest}):
        if output.top_k is not None and output.top_k > output.shape[-1]:
            raise ValueError(
                f"`top_k` must be at most the number of classes, "
                f"{output.shape[-1]}. Received: top_k={output.top_k}"
            )
        fields += output.fields
    return {**manifest, "fields": _storage.fields_of(fields)}


def _small(dtype):
    # Backends differ in the integers that they draw.
    return "<i4" if np.issubdtype(dtype, np.integer) else np.dtype(dtype).str


def _names_in_structure(answers):
    """Return the structure of outputs, with their names in their places.

    Raises:
        ValueError: if JSON can't keep it.
    """
    count = len(tree.flatten(answers))
    names = [f"output_{index}" for index in range(count)]
    return _plain(tree.pack_sequence_as(answers, names))


def _plain(structure):
    if isinstance(structure, dict):
        for key in structure:
            if not isinstance(key, str):
                raise ValueError(
                    "A recording keeps dicts of outputs by strings. Received: "
                    f"the key {key!r}. Wrap the teacher in a function that "
                    "returns other keys, and name the student's alike."
                )
        return {key: _plain(part) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_plain(part) for part in structure]
    return structure


def _endings(members, count):
    """Return, per output, the last activation of each model that shows it."""
    endings = [[] for _ in range(count)]
    for member in members:
        if not isinstance(member, keras.Model):
            continue
        outputs = tree.flatten(_outputs.known_outputs(member))
        if len(outputs) != count or None in outputs:
            continue
        for known, output in zip(endings, outputs):
            layer, activation = _outputs.ending_activation(output)
            known.append(
                {
                    "model": member.name,
                    "layer": getattr(layer, "name", None),
                    "activation": activation,
                }
            )
    return endings


def _check_values(output, header):
    """Raise if outputs are not what `predicts` and `from_logits` say."""
    kind = header["predicts"], header["from_logits"]
    if float(contradicts(output, *kind)):
        given, seen = "logits", "probabilities"
        if not header["from_logits"]:
            given, seen = seen, given
        raise ValueError(
            f"The teacher's outputs are to be {given} of {kind[0]}, and look "
            f"like {seen}: values from {output.min():g} to {output.max():g}. "
            f"Received: predicts={kind[0]!r}, from_logits={kind[1]}. Pass "
            f"`from_logits={not kind[1]}`, or `predicts=` what they are."
        )
