"""`shrink`: the best network that fits a budget."""

import os
from typing import Any

import keras

from keras_distill import _arguments
from keras_distill import _backend
from keras_distill.compression._models import model_to_rebuild
from keras_distill.compression.litert._export_litert import PRECISIONS
from keras_distill.compression.litert._export_litert import check_installed
from keras_distill.losses import FunctionMatching
from keras_distill.recording._manifest import augment_fingerprint
from keras_distill.reports._arguments import inputs_of
from keras_distill.reports._arguments import named_models
from keras_distill.reports._compare_files import compare_files
from keras_distill.reports._labels_and_metrics import check_data
from keras_distill.shrinking._budget import Budget
from keras_distill.shrinking._budget import check_limits
from keras_distill.shrinking._candidates import taught
from keras_distill.shrinking._run import Run
from keras_distill.shrinking._run import described
from keras_distill.shrinking._run import fingerprint
from keras_distill.shrinking._score import Score
from keras_distill.shrinking._shrunk import Shrunk
from keras_distill.shrinking._teaching import Teaching

_ROUNDS = 20
_ORIGINAL = "original"
# For the ranges of the original's int8 file, and for normalizations.
_NUM_SAMPLES = 512


def shrink(
    model: keras.Model,
    train: Any,
    *,
    validation: tuple[Any, Any],
    directory: str | os.PathLike[str],
    epochs: int,
    max_bytes: int | None = None,
    max_ms: float | None = None,
    max_macs: int | None = None,
    max_parameters: int | None = None,
    max_arena_bytes: int | None = None,
    precision: str = "int8",
    teacher: Any = None,
    augment: keras.layers.Layer | None = None,
    loss: Any = None,
    metrics: Any = None,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    verbose: str | int = "auto",
) -> Shrunk:
    """Return the best network that fits the budget of a device.

    The budget is one or several maxima. For each candidate:

    1. Channels are removed, as few as the budget allows. What a network takes
       is measured in the file that it becomes, before any training.
    2. The smaller network is trained as the student of `teacher`, for `epochs`
       epochs. For `"int8"`, the last quarter is quantization-aware training.
    3. Its file is written, and run on the validation data.

    The candidate with the best validation figure is chosen. The candidates:

    - `"uniform"`: each group of layers loses the same share of its channels.
    - `"global"`: the least important channels of all groups are removed, as
      with `prune_channels(..., scope="global")`.
    - `"iterative"`: the same in three steps, with training between them.
    - `"sparse"`, for `precision="packed"` and `max_bytes`, if `model` is within
      all other limits: all channels stay. The smallest weights become zero, as
      many as the budget requires (`MagnitudePruning`). In the last quarter of
      the epochs, kernels and biases share 16 values per layer
      (`WeightSharing`). This makes a packed file small, but not fast.
    - `"narrow-sparse"`, for `precision="packed"` and `max_bytes`, if 92.5 % of
      zeros are not enough: as few channels as necessary are removed first. The
      positions of the other weights take fewer bits in a narrow network.

    After a kill, start the same program again: it continues where it was, see
    `Resume`. Everything is kept in `directory`. It runs in one process.

    Args:
        model: a built functional or Sequential model, trained. It is not
            changed.
        train: what `fit()` of a `Distiller` takes: an array of inputs, a tuple
            `(x, y)` or `(x, y, sample_weight)` of arrays, or a dataset with a
            known number of batches. Labels are necessary only if `loss` reads
            them.
        validation: tuple `(x, y)` of arrays, as `data` of `compare`. The
            candidate is chosen on it, so measure the result on other data.
        directory: path of a folder for states and files, which is created.
        epochs: int, the number of epochs of each candidate.
        max_bytes: int, the maximum size of the file.
        max_ms: float, the maximum time of one inference of the file on this
            machine, on one thread. It is measured once per network, before
            training.
        max_macs: int, the maximum number of multiply-accumulate operations.
        max_parameters: int, the maximum number of weights of the network,
            before BatchNormalizations are folded.
        max_arena_bytes: int, the maximum RAM on a microcontroller, see
            `compare`.
        precision: a precision of `export_litert`, or `"packed"` for the file
            that `pack` writes.
        teacher: as in `Distiller`. Default: `model`.
        augment: as in `Distiller`.
        loss: as in `Distiller.compile`. Default: `FunctionMatching()`.
        metrics: as in `compare`, for models that are not classifiers with one
            output. The first one decides.
        learning_rate: float, the highest learning rate of Adam. It rises at
            first and falls to zero, and is a tenth while int8 is trained.
        batch_size: int, the batch size for arrays.
        verbose: as in `fit()`.

    Returns:
        A `Shrunk`, with the network in `model`. `print` it for the figures of
        all candidates.

    Raises:
        ImportError: if LiteRT is required and not installed.
        ValueError: if the budget cannot be reached (the message says what can),
            if the directory has a run with other settings, or if an argument is
            not as described. All are found before any training.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import shrink

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(64, "relu"),
         keras.layers.Dense(3)]
    )
    x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
    result = shrink(
        model, x, validation=(x, y), directory="shrunk", epochs=2,
        max_parameters=300, precision="packed", verbose=0,
    )
    print(result.model.count_params())  # 291
    result.export("student.packed")
    ```
    """
    form = _form(precision)
    limits = check_limits(
        {
            "max_bytes": max_bytes,
            "max_ms": max_ms,
            "max_macs": max_macs,
            "max_parameters": max_parameters,
            "max_arena_bytes": max_arena_bytes,
        },
        form,
    )
    model = model_to_rebuild("shrink", model)
    _check_alone(model)
    x, targets = check_data(
        named_models({_ORIGINAL: model}), validation, metrics
    )
    score = Score(targets, form)
    teaching = Teaching(
        teacher=model if teacher is None else teacher,
        train=train,
        augment=augment,
        loss=FunctionMatching() if loss is None else loss,
        learning_rate=_arguments.positive_float("learning_rate", learning_rate),
        epochs=_arguments.positive_int("epochs", epochs),
        batch_size=_arguments.positive_int("batch_size", batch_size),
        verbose=verbose,
    )
    samples = [array[:_NUM_SAMPLES] for array in inputs_of(model, x)]
    budget = Budget(limits, form, samples, known={})
    run = Run(directory)
    run.check_settings(
        {
            "budget": limits,
            "precision": precision,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "model": fingerprint(model),
            "teacher": fingerprint(teaching.teacher),
            "loss": described(loss),
            "augment": str(augment_fingerprint(augment)),
        }
    )
    students = taught(model, budget, teaching, run)
    models = {_ORIGINAL: model, **students}
    files, notes = run.write_files(models, form, samples)
    comparison = compare_files(models, files, (x, targets), _ROUNDS, notes)
    figures = comparison.to_dict()
    name = score.best(
        # A file may compress less well than before it was trained.
        {n: figures[n] for n in students if budget.holds(files[n][form])}
    )
    return Shrunk(name, models[name], files[name][form], comparison)


def _check_alone(model):
    number, count = _backend.process(model)
    if count > 1:
        raise ValueError(
            "`shrink` writes files and measures them in one process. Received: "
            f"process {number} of {count}. Run it in one process, on several "
            "devices if necessary."
        )


def _form(precision):
    """Return the form of the file, as in `write_form`.

    Raises:
        ImportError: if LiteRT is required and not installed.
    """
    if precision == "packed":
        return precision
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must have values from {(*PRECISIONS, 'packed')}. "
            f"Received: precision={precision!r}"
        )
    check_installed()
    return f"litert_{precision}"
