"""What a chain has drawn: applied, copied, recorded by name and put back."""

import keras
from keras import ops
from keras import tree

from keras_distill.views import _layer_kinds


def apply(layer, images, transformation):
    """Return a batch of images with a layer's drawing applied."""
    if _layer_kinds.known_class(layer, (keras.layers.RandomCrop,)):
        top, left = transformation
        if hasattr(top, "dtype"):
            return _crop(layer, images, top, left)
    return layer.transform_images(images, copy(transformation), training=True)


def _crop(layer, images, top, left):
    """`RandomCrop`, which slices in a way that JAX can't compile."""
    first = layer.data_format == "channels_first"
    rows = top + ops.arange(layer.height, dtype="int32")
    columns = left + ops.arange(layer.width, dtype="int32")
    images = ops.cast(images, layer.compute_dtype)
    images = ops.take(images, rows, axis=2 if first else 1)
    return ops.take(images, columns, axis=3 if first else 2)


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
