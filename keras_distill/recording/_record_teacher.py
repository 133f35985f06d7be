"""record_teacher: write down what a teacher answers, and to which views."""

import pathlib
import time

import keras
import numpy as np
from keras import tree

from keras_distill import _arguments
from keras_distill.recording import _sources
from keras_distill.recording import _storage
from keras_distill.recording._labeller import Labeller
from keras_distill.recording._manifest import check_same
from keras_distill.recording._manifest import describe
from keras_distill.recording._manifest import header_of
from keras_distill.recording._recorded_teacher import RecordedTeacher
from keras_distill.recording._recorded_teacher import outputs_of
from keras_distill.teachers._live_teacher import LiveTeacher
from keras_distill.views import ConsistentAugment

# A shard is finished when it has so many bytes, or has taken so long: what is
# lost by a kill is one shard.
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60


def record_teacher(
    teacher,
    dataset,
    path,
    *,
    augment=None,
    epochs=1,
    batch_size=32,
    seed=0,
    predicts="classes",
    from_logits=True,
    storage_dtype=None,
    top_k=None,
    teacher_preprocessing=None,
    teacher_dtype=None,
    verbose=1,
):
    """Record a teacher's answers together with the views they belong to.

    Each epoch draws new views of all samples, lets the teacher answer, and
    writes one row per view: the sample, the drawn transformation and the
    answer. `RecordedTeacher` replays the rows to any number of students.

    A killed recording goes on where its last finished shard ends: call the
    function again with the same arguments. It refuses to go on with another
    teacher, other data or other views.

    Layers of Keras run compiled, as in `predict`. All other callables run
    outside of what is compiled, on values: NumPy arrays on TensorFlow and JAX,
    torch tensors on PyTorch. So a function may use NumPy, another framework, a
    file or a server. A torch module gets torch tensors on every backend, runs
    in evaluation mode, and is afterwards as it was before.

    Args:
        teacher: a built Keras model, a torch module, any other callable
            `inputs -> outputs`, or a list of them. What it returns is a tensor
            or array of any framework with one row per sample, or a structure
            of them, or an object with `.logits`.
        dataset: what `fit()` will get, without labels or with them: an array
            (or a dict or tuple of arrays, as one input), or an iterable of
            batches `x`, `(x, y)` or `(x, y, sample_weight)` that starts over
            and always comes in the same order. All of its batches but the last
            must have one size.
        path: folder to write to.
        augment: `ConsistentAugment`, or a layer that it takes, or `None`.
        epochs: how many epochs to record. More than one only pays with
            `augment` or a shuffled order.
        batch_size: int, for arrays.
        seed: int that shuffles arrays anew in each epoch; `None` keeps their
            order.
        predicts: `"classes"`, `"labels"` or `"values"`: what the outputs are,
            as in `DistillationLoss`. Several teachers are averaged
            accordingly, and `top_k` is for classes alone.
        from_logits: bool. Whether the teacher returns logits or probabilities;
            without a meaning for values.
        storage_dtype: `"float16"` or `"float32"`: the dtype of the outputs on
            disk. `None` means `"float32"` for values, else `"float16"`.
        top_k: int, or `None` to keep the answers for all classes. Otherwise
            the log-probabilities of the `top_k` likeliest classes are kept and
            the mass of the rest, which is spread evenly over them in replay.
        teacher_preprocessing: as for `Distiller`. A function gets what the
            teacher gets: torch tensors for a torch module.
        teacher_dtype: as for `Distiller`.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        The `RecordedTeacher` of the recording. To validate with the teacher as
        well, make `RecordedTeacher(path, live=teacher)`.

    Raises:
        TypeError: if the teacher can't be called, or returns something else
            than tensors and arrays.
        ValueError: if the folder holds a recording of something else, if the
            data have no batches or of several sizes, or if the teacher's
            answers are not finite, too large for `dtype`, not one per sample,
            or plainly no logits (or no probabilities).

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
    if storage_dtype is None:
        storage_dtype = "float32" if predicts == "values" else "float16"
    if storage_dtype not in ("float16", "float32"):
        raise ValueError(
            "`storage_dtype` must be 'float16' or 'float32'. Received: "
            f"storage_dtype={storage_dtype!r}"
        )
    if predicts not in ("classes", "labels", "values"):
        raise ValueError(
            "`predicts` must be 'classes', 'labels' or 'values'. "
            f"Received: predicts={predicts!r}"
        )
    if top_k is not None and predicts != "classes":
        raise ValueError(
            "`top_k` keeps the likeliest classes, and the outputs are "
            f"{predicts}. Received: top_k={top_k}. Leave it out."
        )
    if augment is not None and not isinstance(augment, ConsistentAugment):
        augment = ConsistentAugment(augment)
    live = LiveTeacher(
        teacher, teacher_preprocessing, teacher_dtype, in_step=False
    )
    source = _sources.source_of(dataset, batch_size, seed)
    labeller = Labeller(live, augment, predicts, from_logits)
    header = header_of(
        live,
        source,
        augment,
        {
            "predicts": predicts,
            "from_logits": bool(from_logits),
            "storage_dtype": storage_dtype,
            "top_k": top_k and _arguments.positive_int("top_k", top_k),
            "teacher_dtype": teacher_dtype,
        },
    )
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    manifest = _storage.read_manifest(path)
    if manifest is None:
        first = next(iter(source.epoch(0)), None)
        if first is None:
            raise ValueError(
                f"The dataset has no batches to record. Received: {dataset!r}"
            )
        manifest = {**header, **describe(labeller, first[0], header)}
    else:
        check_same(path, manifest, header)
    manifest["epochs"] = max(epochs, manifest.get("epochs", 0))
    _Recorder(path, manifest, source, labeller).record(verbose)
    return RecordedTeacher(path)


class _Recorder:
    """Goes on with a recording from its last finished shard."""

    def __init__(self, path, manifest, source, labeller):
        self.shards = _storage.Shards(path, manifest)
        self.manifest = manifest
        self.source, self.labeller = source, labeller
        self.outputs = outputs_of(manifest)
        self.labeller.seed_states = manifest["seed_states"]
        self.unsaved, self.since = [], time.monotonic()

    def record(self, verbose):
        manifest, done = self.manifest, self.shards.num_rows
        per_epoch = manifest["rows_per_epoch"] or self.source.num_rows
        bar = keras.utils.Progbar(
            per_epoch and per_epoch * manifest["epochs"],
            verbose=verbose,
            unit_name="view",
        )
        row = 0
        for epoch in range(manifest["epochs"]):
            begin = row
            for x, samples in self.source.epoch(epoch):
                self._check_size(len(samples), row - begin)
                if row >= done:
                    self._label(x, samples)
                else:
                    self._check_samples(samples, row)
                row += len(samples)
                if row > done:
                    bar.update(row)
            self._end_epoch(row - begin)
        self._save()
        _storage.write_manifest(self.shards.path, manifest)
        bar.update(row, finalize=True)

    def _label(self, x, samples):
        answers, drawn = self.labeller.label(x)
        rows = np.zeros(len(samples), self.shards.dtype)
        rows["sample"] = samples
        for name, per_row in self.manifest["drawn_per_row"].items():
            values = drawn[name]
            rows[f"drawn_{name}"] = values if per_row else values[np.newaxis]
        for output, values in zip(self.outputs, tree.flatten(answers)):
            _check_finite(values, samples)
            _check_shape(values.shape[1:], output.shape)
            output.write(rows, values)
        self.unsaved.append(rows)
        size = sum(part.nbytes for part in self.unsaved)
        if size >= SHARD_BYTES or time.monotonic() - self.since > SHARD_SECONDS:
            self._save()

    def _save(self):
        if self.unsaved:
            self.shards.append(
                self.unsaved,
                seed_states=[s.tolist() for s in self.labeller.seed_states],
            )
        self.unsaved, self.since = [], time.monotonic()

    def _end_epoch(self, num_rows):
        expected = self.manifest["rows_per_epoch"]
        if num_rows == 0 or expected not in (None, num_rows):
            raise ValueError(
                "Each epoch of a recording must have the same samples. "
                f"Received: {num_rows} of them after {expected}."
            )
        self.manifest["rows_per_epoch"] = num_rows

    def _check_size(self, size, rows_before):
        expected = self.manifest["batch_size"]
        if size > expected or rows_before % expected:
            raise ValueError(
                "All batches of a recording but the last of an epoch must have "
                f"one size. Received: {size} samples after {rows_before}, "
                f"which came in batches of {expected}."
            )

    def _check_samples(self, samples, row):
        """The data go past what is recorded already: is it the same?"""
        recorded = self.shards.read(row, row + len(samples))["sample"]
        if not np.array_equal(recorded, samples):
            raise ValueError(_sources.OTHER_SAMPLES)


def _check_finite(values, samples):
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"The teacher returned NaN or infinity for {bad.sum()} samples of "
            f"a batch, such as {samples[bad][:5].tolist()}. Check the teacher "
            "on them, and that its inputs have the range and preprocessing "
            "that it was trained with. What was recorded before is kept."
        )


def _check_shape(shape, expected):
    if shape != expected:
        raise ValueError(
            "A teacher's outputs must have one shape in all batches. Received: "
            f"shape {shape} after {expected}."
        )
