"""How good the outputs of models and of their LiteRT files are."""

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_distill.reports._arguments import inputs_of
from keras_distill.reports._latency import interpreter


def measure_quality(models, files, x, targets):
    """Return `{name of a model: {key: number}}`.

    Args:
        models: `{name: model}`; agreement is that with the first.
        files: `{name: {form: path}}`. Files of float32 and packed ones compute
            what the model does, which was tried when they were written.
        x: the inputs.
        targets: list of `Target`.
    """
    outputs = {name: _outputs(name, model, x) for name, model in models.items()}
    reference = next(iter(outputs.values()))
    found = {}
    for name, model in models.items():
        found[name] = _scores(targets, outputs[name])
        for target in targets:
            if target.classes is not None:
                same = outputs[name][target.index].argmax(-1) == reference[
                    target.index
                ].argmax(-1)
                found[name][f"{target.prefix}agreement"] = float(np.mean(same))
        for form, path in files[name].items():
            if form.startswith("litert") and form != "litert_float32":
                scores = _scores(targets, _outputs_of_file(path, model, x))
                found[name] |= {f"{form}_{k}": v for k, v in scores.items()}
    return found


def _scores(targets, outputs):
    """Return `{key: number}` of all metrics."""
    return {
        f"{target.prefix}{name}": _score(
            name, metric, target, outputs[target.index]
        )
        for target in targets
        for name, metric in target.metrics.items()
    }


def _score(name, metric, target, outputs):
    if metric is None:
        return float(np.mean(outputs.argmax(-1) == target.classes))
    if isinstance(metric, keras.Metric):
        metric.reset_state()
        metric.update_state(target.labels, outputs)
        value = ops.convert_to_numpy(metric.result())
        metric.reset_state()
    else:
        value = ops.convert_to_numpy(ops.mean(metric(target.labels, outputs)))
    if np.size(value) != 1:
        raise ValueError(
            f"The metric {name!r} must return one number. Received: an array "
            f"of shape {np.shape(value)}. Many metrics take an `average`."
        )
    return float(value)


def _outputs(name, model, x):
    """Return the outputs of a model, flattened, as arrays."""
    outputs = tree.flatten(model.predict(x, verbose=0))
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(
            f"The model {name!r} returns NaN or infinity on the data. Look at "
            "its weights, and whether it gets such inputs as in training."
        )
    return outputs


def _outputs_of_file(path, model, x):
    """Return the outputs of the LiteRT file of a model, as `_outputs` does."""
    runner = interpreter(path).get_signature_runner()
    arrays = [
        array.astype(tensor.dtype)
        for tensor, array in zip(model.inputs, inputs_of(model, x))
    ]
    names = [tensor.name for tensor in model.inputs]
    results = [
        runner(**dict(zip(names, sample)))
        for sample in zip(*(array[:, np.newaxis] for array in arrays))
    ]
    return [
        np.concatenate([result[f"output_{index}"] for result in results])
        for index in range(len(results[0]))
    ]
