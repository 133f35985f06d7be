"""The manifest of a recording: what was recorded, and what the rows mean.

It is a JSON file. Fixed when a recording starts:

- `format`: version of the format of the files.
- `predicts`, `from_logits`, `storage_dtype`, `top_k`: as for `record_teacher`.
- `head`: the teacher's last layer, see `_recorded_head.py`. `None` if outputs
  are recorded, and not hidden states.
- `fingerprint`: checksums of the teacher's weights and of the data, the config
  of the view, and the version of Keras.
- `replicas`: into how many parts a batch is divided before views are drawn.
- `part`: number of this part of the recording and number of parts, or `None`.
- `batch_size`: number of samples of all batches of an epoch except the last.
- `output_shapes`, `structure`: shapes and nesting of the teacher's outputs, or
  of its hidden states.
- `endings`: last activation of each model, per output, where it is known.
- `drawn_per_row`: by name, whether a drawn value differs between images.
- `fields`: name, dtype and shape of each field of a row, see `_storage.py`.

Updated while it is written:

- `epochs`, `rows_per_epoch`: size of the recording.
- `seed_states`: states of the random generators after the last shard.
- `shards`: number of rows and bytes, and checksum of each complete shard.
- `finished`: whether all rows are there.
- `checksum`: checksum of all other entries.
"""

import zlib

import keras
import numpy as np
from keras import tree

from keras_distill._graphs import _outputs
from keras_distill.losses._value_checks import contradicts
from keras_distill.recording import _sources
from keras_distill.recording import _storage
from keras_distill.teachers import _torch_modules
from keras_distill.views import ConsistentAugment


def header_of(live_teacher, source, augment, options):
    """Return the entries that must be equal when a recording is continued.

    Args:
        live_teacher: the `LiveTeacher`.
        source: the source of the data.
        augment: `ConsistentAugment` or `None`.
        options: dict of the arguments of `record_teacher` to keep.
    """
    dtype = options.pop("teacher_dtype")
    return {
        "format": _storage.FORMAT,
        **options,
        "fingerprint": {
            "teacher": teacher_fingerprint(live_teacher, dtype),
            "data": source.fingerprint,
            "augment": augment_fingerprint(augment),
            "keras": keras.__version__,
        },
    }


def teacher_fingerprint(live_teacher, dtype):
    """Return what tells a `LiveTeacher` from others: classes and weights."""
    values = [
        np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).view("uint8")
        for variable in live_teacher.weights
    ]
    for part in (*live_teacher.members, live_teacher.preprocessing):
        if not isinstance(part, keras.layers.Layer):
            for module in _torch_modules.modules_of(part):
                values += _torch_modules.values_of(module)
    checksum = 0
    for value in values:
        checksum = zlib.crc32(value, checksum)
    return {
        "members": [type(each).__name__ for each in live_teacher.members],
        "checksum": checksum,
        "dtype": dtype,
    }


def augment_fingerprint(augment):
    """Return the config of a view, without names and seeds."""
    if augment is None:
        return None
    config = keras.saving.serialize_keras_object(
        augment
        if isinstance(augment, ConsistentAugment)
        else ConsistentAugment(augment)
    )
    return _without(config, ("name", "seed", "build_config"))


def _without(config, keys):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return config["config"]["name"]
        return {
            key: _without(value, keys)
            for key, value in config.items()
            if key not in keys
        }
    if isinstance(config, (list, tuple)):
        return [_without(value, keys) for value in config]
    if isinstance(config, np.generic):
        return config.item()
    return config


def check_same_header(folder, manifest, header):
    """Raise if a folder holds another recording than a header describes."""
    recorded = {**manifest, **manifest["fingerprint"]}
    for key, value in {**header, **header["fingerprint"]}.items():
        if key != "fingerprint" and recorded[key] != value:
            raise ValueError(
                f"The folder {str(folder)!r} holds another recording. Its "
                f"{key} is {recorded[key]}. Received: {value}. Record into "
                "an empty folder, or with the same arguments as before."
            )


def describe_rows(step, x, header, head, batches):
    """Return the entries that describe the rows.

    Args:
        step: the `RecordingStep`, which is run once; its random generators are
            reset afterwards.
        x: the first batch of inputs.
        header: what `header_of` returned.
        head: the `RecordedHead`, or `None`.
        batches: the range of the batches of this part, `None` for all.

    Raises:
        ValueError: if the batch cannot be divided into `replicas`.
    """
    size, replicas = len(tree.flatten(x)[0]), header["replicas"]
    if size % replicas:
        raise ValueError(
            "The number of samples of a batch must be divisible by `replicas`. "
            f"Received: {size} samples, replicas={replicas}."
        )
    x = _sources.take(x, slice(size // replicas))
    states = step.seed_states
    outputs, drawn = step.run(x)
    if batches is not None:
        views = batches.start * replicas
        states = _after(states, step.seed_states, views)
    step.seed_states = states
    flat = tree.flatten(outputs)
    if len(flat) == 1:  # several outputs may be of different kinds
        values = flat[0] if head is None else head.of_a_few(flat[0])
        _check_values(values, header)
    manifest = {
        "batch_size": size,
        "output_shapes": [list(output.shape[1:]) for output in flat],
        "structure": _names_in_structure(outputs),
        "endings": _endings(step.live_teacher.members, len(flat)),
        "drawn_per_row": step.drawn_per_row(x),
        "rows_per_epoch": None,
        "seed_states": [state.tolist() for state in states],
        "shards": [],
        "finished": False,
    }
    fields = [
        ("sample", "<u4", ()),
        *_drawn_fields(drawn, manifest["drawn_per_row"]),
    ]
    for output in _storage.output_fields({**header, **manifest}):
        _check_top_k(output)
        fields += output.fields
    return {**manifest, "fields": _storage.fields_as_json(fields)}


def _after(states, after_one, views):
    """Return the states of random generators after a number of views.

    A generator counts what it draws, and each view draws the same number.
    """
    return [
        ((one.astype("int64") - state) * views + state) % 2**32
        for state, one in zip(states, after_one)
    ]


def _drawn_fields(drawn, drawn_per_row):
    fields = []
    for name, per_row in drawn_per_row.items():
        values = drawn[name]
        shape = values.shape[1:] if per_row else values.shape
        fields.append((f"drawn_{name}", _small(values.dtype), shape))
    return fields


def _check_top_k(output):
    if output.top_k is not None and output.top_k > output.shape[-1]:
        raise ValueError(
            "`top_k` must be at most the number of classes, "
            f"{output.shape[-1]}. Received: top_k={output.top_k}"
        )


def _small(dtype):
    # Backends draw integers of different dtypes.
    return "<i4" if np.issubdtype(dtype, np.integer) else np.dtype(dtype).str


def _names_in_structure(outputs):
    """Return the structure of outputs, with their names as leaves.

    Raises:
        ValueError: if JSON cannot represent it.
    """
    count = len(tree.flatten(outputs))
    names = [f"output_{index}" for index in range(count)]
    return _plain(tree.pack_sequence_as(outputs, names))


def _plain(structure):
    if isinstance(structure, dict):
        for key in structure:
            if not isinstance(key, str):
                raise ValueError(
                    "A recording requires dicts of outputs to have strings as "
                    f"keys. Received: the key {key!r}. Wrap the teacher in a "
                    "function that returns other keys, and use the same keys "
                    "in the student."
                )
        return {key: _plain(part) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_plain(part) for part in structure]
    return structure


def _endings(members, count):
    """Return, per output, the last activation of each model, if known."""
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
    """Raise if an output contradicts `predicts` or `from_logits`."""
    predicts, from_logits = header["predicts"], header["from_logits"]
    if not float(contradicts(output, predicts, from_logits)):
        return
    expected, found = "logits", "probabilities"
    if not from_logits:
        expected, found = found, expected
    raise ValueError(
        f"The teacher's outputs must be {expected} of {predicts}. Received: "
        f"predicts={predicts!r}, from_logits={from_logits}, and outputs that "
        f"look like {found}: values from {output.min():g} to "
        f"{output.max():g}. Use `from_logits={not from_logits}`, or another "
        "`predicts`."
    )
