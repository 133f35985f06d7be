"""compare: what each of several models costs, and what it gives for it."""

import pathlib
import tempfile
import zlib

import numpy as np
from keras import ops

from keras_distill import _arguments
from keras_distill.reports._arguments import check_precisions
from keras_distill.reports._arguments import named_models
from keras_distill.reports._arguments import samples_for_ranges
from keras_distill.reports._calls import infer
from keras_distill.reports._comparison import Comparison
from keras_distill.reports._energy import energies
from keras_distill.reports._files import write_files
from keras_distill.reports._latency import measure_latency
from keras_distill.reports._macs import count_macs
from keras_distill.reports._memory import peak_activation_bytes
from keras_distill.reports._quality import measure_quality
from keras_distill.reports._targets import check_data


def compare(
    models,
    data=None,
    litert=None,
    rounds=20,
    representative_data=None,
    metrics=None,
):
    """Return what models cost and how good they are, side by side.

    For each model, under these keys:

    - `parameters`, `nonzero_parameters`: statistics of normalizations count.
    - `macs`: multiply-accumulate operations of one inference, zeros included.
      Convolutions, Dense, attention and recurrent layers count, and nothing
      that works entry by entry.
    - `peak_activation_bytes`: what the tensors that live at once take at most,
      in float32, layer after layer in the order of the graph. Normalizations,
      activations and dropout write over what they read.
    - `keras_bytes`, `packed_bytes`, `litert_*_bytes`: sizes of files, written
      for this by `save` (without the optimizer), `pack` and `export_litert`.
    - `litert_*_zipped_bytes`: what DEFLATE, the method of zip files, makes of a
      LiteRT file. Zeros and shared values show in it, in the file itself not.
    - `litert_*_ms`: time of one inference in the LiteRT interpreter on one
      thread. The models take turns; this is the median of a model's turns, and
      `litert_*_ms_low` and `litert_*_ms_high` the smallest and the largest.
    - `energy_float32_uj`, `energy_int8_uj`, `energy_packed_uj`: an estimate in
      microjoules, `MACs x (multiply + add) + DRAM x weights + SRAM x
      activations`, each of them moved once, with the published energies of a
      45 nm chip. No device was measured. `packed` is a chip that reads the
      packed file and skips zeros.
    - with `data`: `accuracy`, or one figure for each of `metrics`, such as
      `mae`, and of several outputs `{output}_mae`. For LiteRT files of less
      than 32 bits, `litert_*_accuracy` or `litert_*_mae` too. Where the labels
      are classes, `agreement`: the share of samples for which the model chooses
      the class that the first model chooses.

    Sources: [Horowitz 2014](https://doi.org/10.1109/ISSCC.2014.6757323) and
    [Han et al. 2016](https://arxiv.org/abs/1602.01528) for the energies.

    Args:
        models: dict of built functional or Sequential models by name, or a list
            of models with different names. The first is what the others are
            measured against. They stay as they are. Of a `Distiller`, the
            student counts.
        data: tuple `(x, y)` of arrays. Without `metrics`, `y` are classes,
            integers or one-hot, for models that return logits or probabilities
            of shape `(..., classes)`. With them, `y` is what these take; for
            several outputs a list, or a dict by the name of an output.
        litert: precisions of LiteRT files, as in `export_litert`. `()` leaves
            them out, and the time with them. Default: float32, float16 and
            int8 if LiteRT is installed; otherwise none, and a note says so.
        rounds: how many turns each file has when it is timed.
        representative_data: inputs as in training, from which `"int8"` gets its
            ranges, as in `export_litert`, but no iterator. Without them, the
            first 512 samples of `data` are taken, which are then scored too;
            without `data`, random numbers.
        metrics: what to measure instead of accuracy: a dict of metrics by any
            name, or a list of metrics. A metric is one of Keras, or its name,
            or a function of labels and outputs whose mean is taken. For several
            outputs, a dict of such by the name of an output; those not in it
            are not measured.

    Returns:
        A `Comparison`: `print` it for a table. A figure that can't be had is
        None, and a note says why.

    Raises:
        ImportError: if `litert` names precisions and LiteRT is not installed.
        TypeError: if one of `models` is not a model, one of `metrics` no
            metric, or `representative_data` an iterator.
        ValueError: if `models` is empty, or one of them is not built, has no
            graph or inputs of unknown size; if two have the same name; if
            models, data and metrics don't fit; or if there are no `metrics` and
            the outputs or labels are not those of one classifier.

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
            "`metrics` are measured on `data`. Received: data=None, "
            f"metrics={metrics!r}"
        )
    samples = samples_for_ranges(models, data, representative_data)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, model) in enumerate(models.items()):
            place = pathlib.Path(folder, str(index))
            place.mkdir()
            files[name], found = write_files(
                model, place, litert, samples[name]
            )
            notes += [f"{form} of {name}: {note}" for form, note in found]
        figures = {
            name: _costs(name, model, files[name], notes)
            for name, model in models.items()
        }
        for name, times in measure_latency(files, rounds).items():
            figures[name] |= times
        if data:
            for name, quality in measure_quality(models, files, *data).items():
                figures[name] = _merged(figures[name], quality)
    return Comparison(figures, notes)


def _merged(costs, quality):
    clash = sorted(costs.keys() & quality.keys())
    if clash:
        raise ValueError(
            "`metrics` must have other names than the figures that are there "
            f"already. Received: {clash}"
        )
    return costs | quality


def _costs(name, model, files, notes):
    """Return what can be said of a model without running it."""
    inference = infer(model)
    macs = count_macs(inference.calls)
    if macs.uncounted:
        some = ", ".join(macs.uncounted[:3])
        more = f" and {n - 3} more" if (n := len(macs.uncounted)) > 3 else ""
        notes.append(f"macs of {name}: not known for {some}{more}")
    sizes = {form: path.stat().st_size for form, path in files.items()}
    zipped = {
        f"{form}_zipped_bytes": len(zlib.compress(path.read_bytes(), 9))
        for form, path in files.items()
        if form.startswith("litert")
    }
    weights = [ops.convert_to_numpy(weight) for weight in model.weights]
    parameters = sum(weight.size for weight in weights)
    energy = energies(parameters, macs, sizes.get("packed"), inference.calls)
    return {
        "parameters": parameters,
        "nonzero_parameters": sum(int(np.count_nonzero(w)) for w in weights),
        "macs": macs.all,
        "peak_activation_bytes": peak_activation_bytes(inference),
        **{f"{form}_bytes": size for form, size in sizes.items()},
        **zipped,
        **{f"energy_{chip}_uj": value for chip, value in energy.items()},
    }
