"""What a chain has drawn: copied, and recorded by name and put back."""

from keras import ops
from keras import tree


def copy(transformation):
    """Return a copy: on PyTorch, some layers write into what was drawn."""
    return tree.map_structure(
        lambda leaf: ops.copy(leaf) if hasattr(leaf, "dtype") else leaf,
        transformation,
    )


def tensors_of(transformations):
    """Return the tensors in a drawing by name, `"layer/key"`."""
    return {
        _name(index, path): leaf
        for index, transformation in enumerate(transformations)
        for path, leaf in tree.flatten_with_path(transformation)
        if hasattr(leaf, "dtype")
    }


def replaced(transformation, index, recorded):
    """Return a transformation with the recorded tensors in their places.

    What is not recorded stays: it tells of shapes, and may be a tensor where
    the batch size is not known beforehand.
    """
    leaves = [
        ops.cast(recorded[_name(index, path)], leaf.dtype)
        if _name(index, path) in recorded
        else leaf
        for path, leaf in tree.flatten_with_path(transformation)
    ]
    return tree.pack_sequence_as(transformation, leaves)


def _name(index, path):
    return "/".join(map(str, (index, *path)))
