"""How often a model chooses the right class, and that of another model."""

import numpy as np

from keras_distill.reports.arguments import inputs_of
from keras_distill.reports.latency import interpreter


def measure_quality(models, files, x, y):
    """Return `{name of a model: {key: share}}`.

    Args:
        models: `{name: model}`; agreement is that with the first.
        files: `{name: {form: path}}`. Files of float32 and packed ones compute
            what the model does, which was tried when they were written.
        x: the inputs.
        y: the right classes.
    """
    decided = {n: _decide(n, model, x) for n, model in models.items()}
    reference = next(iter(decided.values()))
    found = {}
    for name, model in models.items():
        found[name] = {
            "accuracy": float(np.mean(decided[name] == y)),
            "agreement": float(np.mean(decided[name] == reference)),
        }
        for form, path in files[name].items():
            if form.startswith("litert") and form != "litert_float32":
                chosen = _decide_in_litert(path, model, x)
                accuracy = float(np.mean(chosen == y))
                found[name][f"{form}_accuracy"] = accuracy
    return found


def _decide(name, model, x):
    """Return the class that a model chooses, for each sample."""
    outputs = model.predict(x, verbose=0)
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"The model {name!r} returns NaN or infinity on the data. Look at "
            "its weights, and whether it gets such inputs as in training."
        )
    return outputs.argmax(-1)


def _decide_in_litert(path, model, x):
    """Return the class that the LiteRT file of a model chooses."""
    runner = interpreter(path).get_signature_runner()
    arrays = [
        array.astype(tensor.dtype)
        for tensor, array in zip(model.inputs, inputs_of(model, x))
    ]
    names = [tensor.name for tensor in model.inputs]
    return np.concatenate(
        [
            runner(**dict(zip(names, sample)))["output_0"].argmax(-1)
            for sample in zip(*(array[:, np.newaxis] for array in arrays))
        ]
    )
