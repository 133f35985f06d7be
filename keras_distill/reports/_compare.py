"""`compare`: the size, speed and accuracy of several models, side by side."""

import pathlib
import tempfile
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import _arguments
from keras_distill.reports._arguments import check_precisions
from keras_distill.reports._arguments import named_models
from keras_distill.reports._arguments import samples_for_ranges
from keras_distill.reports._compare_files import compare_files
from keras_distill.reports._comparison import Comparison
from keras_distill.reports._labels_and_metrics import check_data
from keras_distill.reports._measure import write_files


def compare(
    models: Mapping[str, keras.Model] | Sequence[keras.Model],
    data: tuple[Any, Any] | None = None,
    litert: str | Iterable[str] | None = None,
    rounds: int = 20,
    representative_data: Any = None,
    metrics: Any = None,
) -> Comparison:
    """Compare the size, speed and accuracy of models.

    The figures of each model have these keys:

    - `parameters`, `nonzero_parameters`: with the statistics of normalizations.
    - `macs`: multiply-accumulate operations of one inference, zeros included.
      They include convolutions, Dense, attention and recurrent layers, but no
      elementwise operations.
    - `peak_activation_bytes`: the maximum memory of all tensors that live at
      once, in float32, with the layers in the order of the graph.
      Normalizations, activations and dropout overwrite their inputs.
    - `keras_bytes`, `packed_bytes`, `litert_*_bytes`: sizes of the files that
      `save` (without the optimizer), `pack` and `export_litert` write.
    - `litert_*_zipped_bytes`: size of a LiteRT file compressed with DEFLATE,
      the method of zip files. Zeros and shared values make it smaller; they do
      not change the size of the LiteRT file.
    - `litert_int8_arena_bytes`: the RAM that the file takes on a
      microcontroller, as Google's interpreter for microcontrollers plans it:
      activations, and what it keeps of each tensor. Only if `tflite-micro` is
      installed.
    - `litert_*_ms`: time of one inference in the LiteRT interpreter on one
      thread. The models take turns. This is the median over the turns, with the
      minimum `litert_*_ms_low` and the maximum `litert_*_ms_high`.
    - `energy_float32_uj`, `energy_int8_uj`, `energy_packed_uj`: an estimate in
      microjoules, `MACs x (multiply + add) + DRAM x weights + SRAM x
      activations`, each moved once, with the published energies of a 45 nm
      chip. No device was measured. `packed` is a chip that reads the packed
      file and skips zeros.
    - with `data`: `accuracy`, or a figure for each of `metrics`, such as `mae`
      (`{output}_mae` if there are several outputs). LiteRT files with less than
      32 bits have their own, `litert_*_accuracy` or `litert_*_mae`. If the
      labels are classes, there is also `agreement`: the share of samples for
      which the model predicts the same class as the first model.

    Sources: [Horowitz 2014](https://doi.org/10.1109/ISSCC.2014.6757323) and
    [Han et al. 2016](https://arxiv.org/abs/1602.01528) for the energies.

    Args:
        models: dict of built functional or Sequential models by name, or a list
            of models with different names. The first model is the reference for
            agreement. For a `Distiller`, its student is compared. The models
            are not changed.
        data: tuple `(x, y)` of arrays. Without `metrics`, `y` are classes
            (integers or one-hot) for models that return logits or probabilities
            of shape `(..., classes)`. With `metrics`, `y` are labels that the
            metrics take; for several outputs, a list, or a dict by output name.
        litert: precisions of LiteRT files, as in `export_litert`. `()`: no
            LiteRT files and no times. Default: float32, float16 and int8 if
            LiteRT is installed; otherwise none, with a note.
        rounds: int, the number of turns for the time of each file.
        representative_data: inputs as in training, which determine the ranges
            of `"int8"` files, as in `export_litert`; not an iterator. Default:
            the first 512 samples of `data` (the file is then measured on them
            too), or random numbers without `data`.
        metrics: metrics instead of accuracy: a dict by any name, or a list. A
            metric is a Keras metric, its name, or a function of labels and
            outputs, whose mean is taken. For several outputs, a dict of these
            by output name; outputs that are not in it are not measured.

    Returns:
        A `Comparison`: `print` it for a table. A figure that could not be
        measured is None, and a note says why.

    Raises:
        ImportError: if `litert` names precisions and LiteRT is not installed.
        TypeError: if `models` has anything but models, `metrics` anything but
            metrics, or if `representative_data` is an iterator.
        ValueError: if `models` is empty; if a model is not built, has no layer
            graph, or has inputs of unknown size; if two models have the same
            name; if models, data and metrics do not fit each other; or if there
            are no `metrics` and the models are not classifiers with one output.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import compare
    from keras_distill.compression import prune_channels

    teacher = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"),
         keras.layers.Dense(3)]
    )
    student = prune_channels(teacher, 0.5)
    x, y = np.random.rand(32, 8), np.random.randint(0, 3, 32)
    print(compare({"teacher": teacher, "student": student}, (x, y), litert=()))
    ```
    """
    models = named_models(models)
    litert, notes = check_precisions(litert)
    rounds = _arguments.positive_int("rounds", rounds)
    if data is not None:
        data = check_data(models, data, metrics)
    elif metrics is not None:
        raise ValueError(
            "`metrics` require `data` to be measured on. Received: data=None, "
            f"metrics={metrics!r}"
        )
    samples = samples_for_ranges(models, data, representative_data)
    files: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, model) in enumerate(models.items()):
            place = pathlib.Path(folder, str(index))
            place.mkdir()
            files[name], found = write_files(
                model, place, litert, samples[name]
            )
            notes += [f"{form} of {name}: {note}" for form, note in found]
        return compare_files(models, files, data, rounds, notes)
