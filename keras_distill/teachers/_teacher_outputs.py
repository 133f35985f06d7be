"""Converts what a teacher returned to tensors, in a structure of Keras."""

import dataclasses

import keras
from keras import tree

from keras_distill.teachers import _torch_modules


def tensors_of(outputs, view):
    """Return a teacher's outputs as tensors of the backend, in a structure.

    Args:
        outputs: what the teacher returned: tensors or arrays of any framework,
            alone or in lists, tuples and dicts. An object with `.logits` is
            replaced by its logits.
        view: the inputs that the outputs belong to.

    Raises:
        TypeError: if the outputs contain anything else.
        ValueError: if there is not one output per sample.
    """
    outputs = arrays_of(outputs)
    leaves = tree.flatten(outputs)
    if len(leaves) == 1:  # Of several outputs, some may be unused.
        check_rows(leaves[0], _size(tree.flatten(view)[0]))
    return tree.map_structure(_tensor, outputs)


def arrays_of(outputs):
    """Return the outputs as tensors and arrays of the teacher's framework."""
    outputs = _logits_or_all(outputs)
    if tree.is_nested(outputs):
        outputs = tree.map_structure(_logits_or_all, outputs)
    for leaf in tree.flatten(outputs):
        if not _is_array(leaf):
            raise TypeError(
                "A teacher must return tensors or arrays, alone or in lists, "
                f"tuples and dicts. Received: {_described(leaf)}. Wrap the "
                "teacher in a function that returns what the student should "
                "match, such as `lambda x: teacher(x).last_hidden_state`, or "
                "`np.asarray(...)` of a list of numbers."
            )
    return outputs


def _logits_or_all(outputs):
    if _is_array(outputs):
        return outputs
    logits = getattr(outputs, "logits", None)
    return outputs if logits is None else logits


def _is_array(leaf):
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _described(leaf):
    text = f"an object of type {type(leaf).__name__}"
    if isinstance(leaf, (bool, int, float, str, type(None))):
        return f"{text}, {leaf!r}"
    names = []
    if dataclasses.is_dataclass(leaf):
        names = [field.name for field in dataclasses.fields(leaf)]
    elif hasattr(leaf, "keys"):
        names = list(leaf.keys())
    return f"{text} with {names}" if names else text


def check_rows(output, size):
    """Raise unless an output has a row for each sample.

    Args:
        output: a tensor or array.
        size: number of samples, `None` if it is unknown.
    """
    if None not in (size, _size(output)) and _size(output) != size:
        raise ValueError(
            "A teacher must return one output per sample. Received: outputs "
            f"of shape {tuple(output.shape)} for {size} samples."
        )


def _size(leaf):
    """Return the length of the first axis, `None` if it is unknown."""
    shape = getattr(leaf, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    shape = tuple(shape)
    if not shape:
        return 0
    return shape[0] if isinstance(shape[0], int) else None


def _tensor(leaf):
    if isinstance(leaf, keras.KerasTensor):
        return leaf
    if not keras.ops.is_tensor(leaf):
        leaf = _torch_modules.to_numpy(leaf)
    return keras.ops.convert_to_tensor(leaf)
