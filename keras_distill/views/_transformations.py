"""Transformations: the random numbers that each layer draws for a batch.

They can be applied to images, copied, stored by name, and restored from a
recording.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_distill._typing import Tensor
from keras_distill.views import _layer_kinds


def apply(
    layer: keras.layers.Layer, images: Tensor, transformation: Any
) -> Any:
    """Return a batch of images with the transformation of a layer applied."""
    if _layer_kinds.known_class(layer, (keras.layers.RandomCrop,)):
        top, left = transformation
        if hasattr(top, "dtype"):
            return _crop(layer, images, top, left)
    return layer.transform_images(images, copy(transformation), training=True)


def _crop(layer, images, top, left):
    """Apply `RandomCrop`. Its own slicing cannot be compiled by JAX."""
    first = layer.data_format == "channels_first"
    rows = top + ops.arange(layer.height, dtype="int32")
    columns = left + ops.arange(layer.width, dtype="int32")
    images = ops.cast(images, layer.compute_dtype)
    images = ops.take(images, rows, axis=2 if first else 1)
    return ops.take(images, columns, axis=3 if first else 2)


def copy(transformation: Any) -> Any:
    """Return a copy, because on PyTorch some layers change the tensors."""
    return tree.map_structure(
        lambda leaf: ops.copy(leaf) if hasattr(leaf, "dtype") else leaf,
        transformation,
    )


def tensors_of(transformations: Sequence[Any]) -> dict[str, Tensor]:
    """Return the tensors of transformations, by names such as `"0/boxes"`.

    Args:
        transformations: list with the transformation of each layer, as returned
            by `ConsistentAugment.draw`.
    """
    return {
        _name(index, path): leaf
        for index, transformation in enumerate(transformations)
        for path, leaf in tree.flatten_with_path(transformation)
        if hasattr(leaf, "dtype")
    }


def with_recorded_tensors(
    transformation: Any, index: int, recorded: Mapping[str, Tensor]
) -> Any:
    """Return a transformation with its tensors replaced by recorded ones.

    Tensors that are not recorded are kept. They depend only on shapes, and are
    tensors if the batch size is unknown.

    Args:
        transformation: the transformation of a layer.
        index: the index of this layer.
        recorded: tensors by name, as `tensors_of` returned them.
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
