"""The files that a model takes: written, not computed."""

import functools

import keras

from keras_distill._outputs import known_inputs
from keras_distill._outputs import known_outputs
from keras_distill.compression import export_litert
from keras_distill.compression import pack


def write_files(model, folder, litert, samples):
    """Write a model in every form.

    Args:
        model: a model with a graph.
        folder: a `pathlib.Path` to write to.
        litert: precisions of LiteRT files, as in `export_litert`.
        samples: inputs from which `"int8"` gets its ranges.

    Returns:
        `{form: path}` of what was written, and `{form: reason}` of what could
        not be.
    """
    writers = {
        "keras": _without_optimizer(model).save,
        "packed": functools.partial(pack, model),
    }
    for precision in litert:
        writers[f"litert_{precision}"] = functools.partial(
            export_litert,
            model,
            precision=precision,
            representative_data=[samples] if precision == "int8" else None,
        )
    paths, refused = {}, {}
    for form, write in writers.items():
        # `save` looks at the ending, the others don't.
        path = folder / f"{form}.keras"
        try:
            write(path)
            paths[form] = path
        except (RuntimeError, ValueError) as error:
            refused[form] = str(error)
    return paths, refused


def _without_optimizer(model):
    """Return the model as it is if it is not compiled, or else its graph."""
    if not model.compiled:
        return model
    # As a graph, the config of a Sequential model is two kilobytes longer.
    return keras.Model(
        known_inputs(model), known_outputs(model), name=model.name
    )
