"""Copying a model layer by layer, with some layers replaced.

Nothing is changed in the given model. Each layer of the copy is built from the
config of the original layer, and its weights are copied.
"""

import keras
import numpy as np
from keras import layers
from keras import ops
from keras import tree

from keras_distill._graphs._walk import has_graph


class Copier:
    """Copies graphs and keeps what is shared in them shared.

    Args:
        replace: a function of a layer. It returns the new layers that take its
            place, as a list, each of them called on what the one before
            returned; or None for a copy as it is. The layer itself in that
            list stands for its copy. Otherwise the caller gives weights to
            what it put in place; `replaced` has it as `{layer: [new layers]}`.
        shape_of: a function that returns the shape that a graph's input tensor
            has in the copy. Default: as it is.
        dtype: the dtype policy of all layers copied that compute in floats.
            Default: as it is.
    """

    def __init__(
        self, replace, shape_of=lambda tensor: tensor.shape, dtype=None
    ):
        self.replace = replace
        self.shape_of = shape_of
        self.dtype = dtype
        self.replaced = {}
        self.copied = {}
        self._new = {}

    def copy(self, model):
        """Return the copy of a model, with the weights of what was copied."""
        copy = self._graph(model)
        for original, new in self.copied.items():
            if isinstance(original, layers.Layer) and not has_graph(original):
                _carry_over(original, new)
        return copy

    def _graph(self, model):
        options = {"name": model.name, "trainable": model.trainable}
        if isinstance(model, keras.Sequential):
            stack = [self._new_input(model.inputs[0])]
            for layer in model.layers:
                stack += self._new_layers(layer)
            return keras.Sequential(stack, **options)
        # `clone_model` would compile the copy of a compiled model too.
        plain = keras.Model(model.input, model.output)
        clone = keras.models.clone_model(
            plain,
            input_tensors=tree.map_structure(self._new_input, plain.input),
            clone_function=self._new_operation,
        )
        # Given to the constructor, `trainable` does not reach the layers, which
        # have flags of their own.
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


def new_layer(original, **changes):
    """Return a new layer with the config of another, apart from `changes`."""
    try:
        config = original.get_config() | changes
        return original.__class__.from_config(config)
    except Exception as error:
        raise ValueError(
            f"The layer {original.name!r}, {original!r}, can't be built anew "
            "from its config. A layer of your own needs a `get_config` with "
            "all arguments of its `__init__`; a Lambda can be replaced by an "
            f"operation or a layer of your own. The reason was: {error}"
        ) from error


def _chain(new):
    def call(inputs, *args, **kwargs):
        for layer in new:
            inputs = layer(inputs, *args, **kwargs)
            args, kwargs = (), {}
        return inputs

    return call


def _carry_over(original, copy):
    # As in saving, because some layers compute things from loaded weights.
    carry_over_flags(original, copy)
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        store = {}
        old.save_own_variables(store)
        # Through arrays of their own: on JAX, an array that two variables held
        # would be donated by one of them.
        new.load_own_variables(
            {k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()}
        )


def carry_over_flags(original, copy):
    """Give a layer of the same structure the `trainable` flags of another."""
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
