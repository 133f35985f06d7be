"""The files that a model takes: written, not computed."""

import functools

import keras

from keras_distill._graphs._outputs import known_inputs
from keras_distill._graphs._outputs import known_outputs
from keras_distill.compression import pack
from keras_distill.compression.litert._export_litert import write_litert


def write_files(model, folder, litert, samples):
    """Write a model in every form.

    Args:
        model: a model with a graph.
        folder: a `pathlib.Path` to write to.
        litert: precisions of LiteRT files, as in `export_litert`.
        samples: inputs from which `"int8"` gets its ranges.

    Returns:
        `{form: path}` of what was written, and `[(form, note)]`: why others
        were not, and what is to be known of those that were.
    """
    writers = {
        "keras": _without_optimizer(model).save,
        "packed": functools.partial(pack, model),
    }
    for precision in litert:
        writers[f"litert_{precision}"] = functools.partial(
            write_litert,
            model,
            precision=precision,
            representative_data=[samples] if precision == "int8" else None,
        )
    paths, notes = {}, []
    for form, write in writers.items():
        # `save` looks at the ending, the others don't.
        path = folder / f"{form}.keras"
        try:
            notes += [(form, note) for note in write(path) or ()]
            paths[form] = path
        except (RuntimeError, ValueError) as error:
            notes.append((form, str(error)))
    return paths, notes


def _without_optimizer(model):
    """Return the model as it is if it is not compiled, or else its graph."""
    if not model.compiled:
        return model
    # As a graph, the config of a Sequential model is two kilobytes longer.
    return keras.Model(
        known_inputs(model), known_outputs(model), name=model.name
    )
