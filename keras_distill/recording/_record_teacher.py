"""record_teacher: writes a teacher's outputs, with the views they belong to."""

import os
from typing import Any

import keras

from keras_distill import _arguments
from keras_distill.recording import _parts
from keras_distill.recording import _sources
from keras_distill.recording import _storage
from keras_distill.recording._folders import folder_of
from keras_distill.recording._manifest import check_same_header
from keras_distill.recording._manifest import describe_rows
from keras_distill.recording._manifest import header_of
from keras_distill.recording._recorded_head import separate_head
from keras_distill.recording._recorded_teacher import RecordedTeacher
from keras_distill.recording._recording_step import RecordingStep
from keras_distill.recording._writer import RecordingWriter
from keras_distill.teachers._live_teacher import LiveTeacher
from keras_distill.views import ConsistentAugment


def record_teacher(
    teacher: Any,
    dataset: Any,
    path: str | os.PathLike[str],
    *,
    augment: keras.layers.Layer | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    seed: int | None = 0,
    predicts: str = "classes",
    from_logits: bool = True,
    storage_dtype: str | None = None,
    top_k: int | None = None,
    hidden_states: bool = False,
    teacher_preprocessing: Any = None,
    teacher_dtype: str | None = None,
    replicas: int = 1,
    part: tuple[int, int] | None = None,
    verbose: int = 1,
) -> RecordedTeacher | None:
    """Record a teacher's outputs, together with the views they belong to.

    Each epoch draws new views of all samples, runs the teacher on them, and
    writes one row per view: the sample, the drawn transformation and the
    outputs. `RecordedTeacher` replays the rows to any number of students.

    A recording that was killed continues after its last complete shard: call
    the function again with the same arguments. It refuses to continue with
    another teacher, other data or other views.

    Keras layers run compiled, as in `predict`. All other callables run outside
    of compiled code, on values: NumPy arrays on TensorFlow and JAX, torch
    tensors on PyTorch. So a function may use NumPy, another framework, a file
    or a server. A torch module gets torch tensors on every backend and runs in
    evaluation mode. Its state is restored after each batch.

    Args:
        teacher: a built Keras model, a torch module, any other callable
            `inputs -> outputs`, or a list of them. Outputs are a tensor or
            array of any framework with one row per sample, a structure of
            them, or an object with `.logits`.
        dataset: what `fit()` will get, with or without labels: an array (or a
            dict or tuple of arrays, as one input), or an iterable of batches
            `x`, `(x, y)` or `(x, y, sample_weight)` that can be read again from
            the start, in the same order. All batches except the last must have
            one size.
        path: folder to write to, or a URL of any storage that fsspec knows,
            for example `"s3://bucket/folder"`.
        augment: `ConsistentAugment`, or a layer that it accepts, or `None`.
        epochs: int, at least 1. Number of epochs to record. More than one is
            useful only with `augment` or a shuffled order.
        batch_size: int, for arrays.
        seed: int that shuffles arrays again in each epoch; `None` keeps their
            order.
        predicts: `"classes"`, `"labels"` or `"values"`: what the outputs are,
            as in `DistillationLoss`. It determines how several teachers are
            averaged. `top_k` requires classes.
        from_logits: bool. Whether the teacher returns logits or probabilities.
            Not used for values.
        storage_dtype: `"float16"` or `"float32"`: dtype of the outputs on disk.
            `None` means `"float32"` for values and hidden states, and
            `"float16"` otherwise.
        top_k: int, or `None` to keep the outputs of all classes. Otherwise the
            log-probabilities of the `top_k` most probable classes are kept,
            and the total probability of the others. `FunctionMatching` and
            `ClassicKD` compare this rest as one class. For other losses and
            metrics, it is divided evenly among the other classes.
        hidden_states: bool. Whether to keep the last hidden states in place of
            the outputs, and the last layer once. Replay applies it to them, so
            the outputs are exact, and a language model takes as many values per
            token as it is wide, and not as many as its vocabulary has. For one
            functional Keras model that ends in a `Dense` or a
            `ReversibleEmbedding`. With `tokens_per_chunk`, replay applies it
            to a few tokens at a time.
        teacher_preprocessing: as for `Distiller`. A function gets what the
            teacher gets: torch tensors for a torch module.
        teacher_dtype: as for `Distiller`.
        replicas: int, at least 1. Number of TensorFlow replicas or PyTorch
            processes that will divide each batch in training. Views are drawn
            for each part of a batch, so that `MixUp` has its partners there.
            All batches must be complete and divisible. Use 1 for one device,
            and for any number of devices on JAX.
        part: `(number, count)`, to record one of `count` parts, or `None` to
            record everything. Several processes or machines record one part
            each, at the same time or one after the other, with the same other
            arguments and one `path`. A part reads the data up to its end and
            runs the teacher on its own batches. The views are those of a
            recording without parts.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        The `RecordedTeacher` of the recording. To run the teacher in validation
        as well, create `RecordedTeacher(path, live=teacher)`. `None` with
        `part`: call `RecordedTeacher(path)` when all parts are finished.

    Raises:
        ImportError: if `path` is a URL and fsspec is not installed.
        TypeError: if the teacher is not callable, or returns anything but
            tensors and arrays.
        ValueError: if the folder holds another recording, if the data has no
            batches or batches of several sizes, if the teacher has no last
            layer for `hidden_states`, or if its outputs are not finite, too
            large for `storage_dtype`, not one per sample, or clearly not logits
            (or not probabilities).

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import ConsistentAugment, MixUp, record_teacher

    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    x = np.random.rand(64, 8).astype("float32")
    recording = record_teacher(teacher, x, "recording", epochs=2, verbose=0)
    print(recording.epochs)  # 2
    ```
    """
    epochs = _arguments.positive_int("epochs", epochs)
    batch_size = _arguments.positive_int("batch_size", batch_size)
    replicas = _arguments.positive_int("replicas", replicas)
    part = _parts.check_part(part)
    storage_dtype = _checked_storage_dtype(
        storage_dtype, predicts, hidden_states
    )
    _check_predicts(predicts)
    top_k = _checked_top_k(top_k, predicts, hidden_states)
    whole = folder_of(path)
    folder = _parts.folder_of_part(whole, part)
    if augment is not None and not isinstance(augment, ConsistentAugment):
        augment = ConsistentAugment(augment)
    live_teacher = LiveTeacher(
        teacher, teacher_preprocessing, teacher_dtype, in_step=False
    )
    head = separate_head(live_teacher) if hidden_states else None
    source = _sources.source_of(dataset, batch_size, seed)
    step = RecordingStep(live_teacher, augment, predicts, from_logits, top_k)
    header = header_of(
        live_teacher,
        source,
        augment,
        {
            "predicts": predicts,
            "from_logits": bool(from_logits),
            "storage_dtype": storage_dtype,
            "top_k": top_k,
            "head": head and head.entry,
            "teacher_dtype": teacher_dtype,
            "replicas": replicas,
            "part": part and list(part),
        },
    )
    batches = None
    if part is not None:
        header["epochs"] = epochs  # another number would move the other parts
        batches = _parts.batches_of_part(part, epochs * source.num_batches)
    folder.create()
    manifest = _storage.read_manifest(folder)
    if manifest is None:
        x = source.first_inputs()
        manifest = {**header, **describe_rows(step, x, header, head, batches)}
    else:
        check_same_header(folder, manifest, header)
    # Parts may start at the same time: one of them writes the head of all.
    if head is not None and (part is None or part[0] == 0):
        head.write(whole)
    manifest["epochs"] = max(epochs, manifest.get("epochs", 0))
    manifest["finished"] = False
    RecordingWriter(folder, manifest, source, step, batches).write(verbose)
    return RecordedTeacher(path) if part is None else None


def _checked_storage_dtype(storage_dtype, predicts, hidden_states):
    if storage_dtype is None:
        exact = predicts == "values" or hidden_states
        return "float32" if exact else "float16"
    if storage_dtype not in ("float16", "float32"):
        raise ValueError(
            "`storage_dtype` must be 'float16' or 'float32'. Received: "
            f"storage_dtype={storage_dtype!r}"
        )
    return storage_dtype


def _check_predicts(predicts):
    if predicts not in ("classes", "labels", "values"):
        raise ValueError(
            "`predicts` must be 'classes', 'labels' or 'values'. "
            f"Received: predicts={predicts!r}"
        )


def _checked_top_k(top_k, predicts, hidden_states):
    if top_k is None:
        return None
    if hidden_states:
        raise ValueError(
            "A recording keeps the most probable classes or hidden states. "
            f"Received: top_k={top_k}, hidden_states=True. Leave one out."
        )
    if predicts != "classes":
        raise ValueError(
            "`top_k` keeps the most probable classes, so it requires "
            f"predicts='classes'. Received: top_k={top_k}, "
            f"predicts={predicts!r}. Remove `top_k`."
        )
    return _arguments.positive_int("top_k", top_k)
