"""copy_layers: a shallower student begins with layers of its teacher."""

import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_distill import _arguments


def copy_layers(
    teacher: keras.Model,
    student: keras.Model,
    *,
    numbers: Sequence[int] | None = None,
) -> dict[str, str]:
    """Copy weights of a deep teacher into a student with fewer layers.

    Both models have the same architecture and widths, and the student has fewer
    of the repeated layers. All models of KerasHub name these with numbers that
    begin at 0, such as `transformer_layer_0`. Layer `i` of `m` in the student
    gets the weights of layer `floor(i * n / m)` of `n` in the teacher: half as
    many layers are every other layer, beginning with the first. All other
    layers (embeddings, last normalization, head) are copied by name. Layers
    that the teacher does not have keep their weights.

    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT",
    https://arxiv.org/abs/1910.01108, section 2.

    Args:
        teacher: a built Keras model, for example a task or a backbone of
            KerasHub. It is not changed.
        student: a built Keras model, which is changed.
        numbers: the number of the teacher's layer for each numbered layer of
            the student, such as `(0, 2, 4, 7, 9, 11)`. Default: evenly spaced.

    Returns:
        A dict from the name of each layer of the student that was changed to
        the name of the teacher's layer.

    Raises:
        TypeError: if one of the two is no Keras model.
        ValueError: if no layer has a counterpart, if weights have other shapes
            or dtypes (nothing is copied then), if two layers of a model have
            one name, or if `numbers` does not fit.

    Example:

    ```python
    import keras
    from keras_distill import copy_layers

    def network(depth):
        blocks = [
            keras.layers.Dense(8, "relu", name=f"block_{i}")
            for i in range(depth)
        ]
        return keras.Sequential([keras.Input((8,)), *blocks])

    copied = copy_layers(network(4), network(2))
    print(copied)  # {'block_0': 'block_0', 'block_1': 'block_2'}
    ```
    """
    layers_of_teacher = _layers_by_name("teacher", teacher)
    layers_of_student = _layers_by_name("student", student)
    sources = {
        **{name: name for name in layers_of_student},
        **_numbered_sources(layers_of_student, layers_of_teacher, numbers),
    }
    pairs = {
        name: (layer, layers_of_teacher[sources[name]])
        for name, layer in layers_of_student.items()
        if sources[name] in layers_of_teacher
    }
    if not pairs:
        raise ValueError(
            "No layer of the student has a counterpart in the teacher. "
            f"Received: layers {list(layers_of_student)[:5]} in the student "
            f"and {list(layers_of_teacher)[:5]} in the teacher. Give layers "
            "that belong together one name, and number repeated layers from 0."
        )
    for layer, source in pairs.values():
        _check_same_weights(layer, source)
    for layer, source in pairs.values():
        for variable, value in zip(layer.weights, source.weights):
            # A copy: on JAX, a training step deletes the buffers that it gets,
            # and the teacher must not lose its own.
            variable.assign(np.array(ops.convert_to_numpy(value)))
    return {name: sources[name] for name in pairs}


def _layers_by_name(role, model):
    """Return the layers with weights that are no models, by name."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{role}` must be a keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    found: dict[str, keras.layers.Layer] = {}
    waiting = [model]
    while waiting:
        layer = waiting.pop(0)
        if isinstance(layer, keras.Model):
            waiting += layer.layers
        elif layer.weights and found.setdefault(layer.name, layer) is not layer:
            raise ValueError(
                "Layers are copied by their names, so each must have its own. "
                f"Received: two layers {layer.name!r} in the {role}."
            )
    return found


def _numbered_sources(student, teacher, numbers):
    """Return `{layer of the student: layer of the teacher}` of repeated layers.

    Args:
        student, teacher: the layers by name.
        numbers: as for `copy_layers`.
    """
    counts = _repeated(student), _repeated(teacher)
    sources = {}
    for prefix, count in counts[0].items():
        available = counts[1].get(prefix, 0)
        if not available:
            continue
        chosen = numbers
        if numbers is None:
            chosen = [i * available // count for i in range(count)]
        _check_numbers(prefix, chosen, count, available)
        for i, number in enumerate(chosen):
            sources[f"{prefix}_{i}"] = f"{prefix}_{number}"
    if numbers is not None and not sources:
        raise ValueError(
            "`numbers` chooses among layers that are numbered from 0, such as "
            f"`transformer_layer_0`. Received: numbers={list(numbers)} and "
            "models without such layers in common."
        )
    return sources


def _repeated(names):
    """Return `{prefix: count}` of names that are numbered from 0."""
    found: dict[str, set[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.+)_(\d+)", name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    return {
        prefix: len(numbers)
        for prefix, numbers in found.items()
        if numbers == set(range(len(numbers)))
    }


def _check_numbers(prefix, numbers, count, available):
    numbers = [_arguments.non_negative_int("numbers", n) for n in numbers]
    if len(numbers) != count or max(numbers) >= available:
        raise ValueError(
            f"`numbers` must have {count} numbers below {available}: one for "
            f"each layer {prefix!r} of the student, which the teacher has "
            f"{available} of. Received: numbers={numbers}"
        )


def _check_same_weights(layer, source):
    shapes = [
        [(tuple(w.shape), "int" in str(w.dtype)) for w in each.weights]
        for each in (layer, source)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "A layer is copied only if all weights have the same shapes. "
            f"Received: {layer.name!r} of the student with "
            f"{_described(layer)}, and {source.name!r} of the teacher with "
            f"{_described(source)}. Use a student of the same widths, and a "
            "teacher that is not quantized and has no LoRA."
        )


def _described(layer):
    return [(w.name, tuple(w.shape), str(w.dtype)) for w in layer.weights]
