"""Copying a model layer by layer, with some layers replaced.

The given model is not changed. Each layer of the copy is built from the config
of the original layer, and its weights are copied.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from keras_distill._graphs._walk import has_graph


class Copier:
    """Copies layer graphs. Shared layers and models stay shared in the copy.

    Args:
        replace: a function of a layer. It returns None to copy the layer, or a
            list of new layers that replace it, each called on the output of the
            one before. In this list, the layer itself stands for its copy. The
            caller sets the weights of new layers, which are listed in the
            attribute `replaced`: `{layer: [new layers]}`. Default: all layers
            are copied.
        shape_of: a function that takes an input tensor of a graph and returns
            its shape in the copy. Default: the same shape.
        dtype: the dtype policy for all copied layers that compute in floats.
            Default: the policy of each layer.
    """

    def __init__(
        self,
        replace: Callable[
            [layers.Layer], list[layers.Layer] | None
        ] = lambda layer: None,
        shape_of: Callable[
            [keras.KerasTensor], tuple[int | None, ...]
        ] = lambda tensor: tensor.shape,
        dtype: str | None = None,
    ) -> None:
        self.replace = replace
        self.shape_of = shape_of
        self.dtype = dtype
        self.replaced: dict[layers.Layer, list[layers.Layer]] = {}
        self.copied: dict[layers.Layer, layers.Layer] = {}
        self._new: dict[layers.Layer, list[layers.Layer]] = {}

    def copy(self, model: keras.Model) -> keras.Model:
        """Return the copy of a model. Copied layers get their weights."""
        copy = self._graph(model)
        for original, new in self.copied.items():
            if isinstance(original, layers.Layer) and not has_graph(original):
                _copy_weights(original, new)
        return copy

    def _graph(self, model):
        options = {"name": model.name, "trainable": model.trainable}
        if isinstance(model, keras.Sequential):
            stack = [self._new_input(model.inputs[0])]
            for layer in model.layers:
                stack += self._new_layers(layer)
            return keras.Sequential(stack, **options)
        # `clone_model` would also compile the copy of a compiled model.
        plain = keras.Model(model.input, model.output)
        clone = keras.models.clone_model(
            plain,
            input_tensors=tree.map_structure(self._new_input, plain.input),
            clone_function=self._new_operation,
        )
        # Given to the constructor, `trainable` does not change the flags of the
        # layers.
        return keras.Model(clone.input, clone.output, **options)

    def _new_input(self, tensor):
        return keras.Input(
            batch_shape=self.shape_of(tensor),
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=tensor.name,
            optional=getattr(tensor._keras_history[0], "optional", False),
        )

    def _new_operation(self, original):
        new = self._new_layers(original)
        return new[0] if len(new) == 1 else _chain(new)

    def _new_layers(self, original):
        if original not in self._new:
            new = None if has_graph(original) else self.replace(original)
            if new is None:
                new = [original]
            if original in new:
                self.copied[original] = self._plain_copy(original)
            else:
                self.replaced[original] = new
            self._new[original] = [self.copied.get(x, x) for x in new]
        return self._new[original]

    def _plain_copy(self, original):
        if has_graph(original):
            return self._graph(original)
        if self.dtype and "float" in getattr(original, "compute_dtype", ""):
            return new_layer(original, dtype=self.dtype)
        return new_layer(original)


def new_layer(original: layers.Layer, **changes: Any) -> layers.Layer:
    """Return a new layer from the config of another, with some changes."""
    try:
        config = original.get_config() | changes
        return original.__class__.from_config(config)
    except Exception as error:
        raise ValueError(
            f"The layer {original.name!r}, {original!r}, cannot be built again "
            "from its config. A custom layer must have a `get_config` with all "
            "arguments of its `__init__`. Replace a Lambda layer by an "
            f"operation or a custom layer. The reason was: {error}"
        ) from error


def _chain(new):
    def call(inputs, *args, **kwargs):
        for layer in new:
            inputs = layer(inputs, *args, **kwargs)
            args, kwargs = (), {}
        return inputs

    return call


def _copy_weights(original, copy):
    # As in saving, because some layers compute things from loaded weights.
    copy_trainable_flags(original, copy)
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        store = {}
        old.save_own_variables(store)
        # Each variable gets a new array: on JAX, an array that two variables
        # hold would be donated by one of them.
        new.load_own_variables(
            {k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()}
        )


def copy_trainable_flags(original: layers.Layer, copy: layers.Layer) -> None:
    """Copy the `trainable` flags between two layers of the same structure."""
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
