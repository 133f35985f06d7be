"""quantize_aware: a model that learns to do with the numbers of int8.

Where a LiteRT file rounds is decided here, for the copy to round in the same
places: the input of the first kernel, and what each layer returns, but not
between a layer and the ReLU that the file has in one operation with it, nor
after layers that only move numbers.
"""

import collections

import keras
from keras import layers

from keras_distill import _arguments
from keras_distill._graphs._copier import Copier
from keras_distill._graphs._walk import graphs
from keras_distill._graphs._walk import has_float_kernel
from keras_distill._graphs._walk import has_graph
from keras_distill._graphs._walk import nodes
from keras_distill.compression._fold_batch_norm import fold_batch_norm
from keras_distill.compression._models import check_model
from keras_distill.compression._models import layers_of
from keras_distill.compression.litert._quantized_blocks import BLOCKS
from keras_distill.compression.litert._quantized_blocks import block
from keras_distill.compression.litert._quantized_layers import QUANTIZED
from keras_distill.compression.litert._quantized_layers import FakeQuantization
from keras_distill.compression.litert._quantized_layers import as_constant
from keras_distill.compression.litert._quantized_layers import is_projection
from keras_distill.compression.litert._quantized_layers import quantized
from keras_distill.compression.litert._quantized_layers import separated
from keras_distill.compression.litert._quantized_layers import (
    set_rounded_weights,
)
from keras_distill.compression.litert._quantized_layers import set_weights

# What goes in is what comes out, in other places. (The mean of a window is
# rounded to the numbers of its input.)
_MOVING = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Dropout,
    layers.Flatten,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.RepeatVector,
    layers.Reshape,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)
_FUSED = (
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
)
# Ranges that every file has: nothing to track. Rounded here, a probability of
# zero would have an infinite loss.
_FIXED_RANGE = ("sigmoid", "softmax", "tanh")


def quantize_aware(model, momentum=0.99):
    """Return a copy of a model that rounds as a LiteRT file in int8 does.

    Train it, by `fit()` or as the student of a `Distiller`, and write it with
    `export_litert(..., precision="int8")`. In the copy

    - every kernel of a Dense, EinsumDense, Conv1D, Conv2D, DepthwiseConv2D,
      SeparableConv2D or MultiHeadAttention is rounded to 255 numbers for each
      output channel,
    - activations are rounded to 256 numbers of a range, which is a moving
      average of the smallest and largest value of the batches trained on; those
      inside of a MultiHeadAttention and a LayerNormalization too, but for the
      variance and what is multiplied by its root, which 8 bits can't hold,
    - every BatchNormalization after a convolution is folded into its kernel
      (see `fold_batch_norm`), and others are in inference mode forever,
    - gradients take rounding for the identity.

    A SeparableConv2D becomes a `"{name}_depthwise"` and a Conv2D of its name; a
    layer with an activation that the file has as an operation of its own, such
    as `"silu"`, becomes two, the second named `"{name}_activation"`. Layers
    that this does not know, such as recurrent ones, compute in float32, with a
    rounded result; `export_litert` names them. All compute in float32, whatever
    their dtype policy.

    Train with a small learning rate, such as a tenth of the last one: the
    model knows its task already.

    Source: [Jacob et al. 2018](https://arxiv.org/abs/1712.05877).

    Args:
        model: a built functional or Sequential model, which may have others
            inside. It stays as it is and shares no variable with the copy.
        momentum: weight of the past in the moving averages of the ranges.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names and the `trainable` flags of `model`. It can be saved and loaded;
        for loading, `keras_distill` must have been imported.

    Raises:
        ValueError: if the model has no graph of layers, if a layer is called
            more than once or shares a variable with another, or if a layer is
            quantized already.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill.compression import quantize_aware

    student = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    student = quantize_aware(student)
    student.compile("sgd", "mse")
    student.fit(np.random.rand(32, 8, 8, 1), np.ones((32, 10)), verbose=0)
    ```
    """
    momentum = _arguments.fraction("momentum", momentum)
    model = check_model("quantize_aware", model)
    _check_kernels(model)
    folded = fold_batch_norm(model)
    copier = Copier(_Replacement(folded, momentum), dtype="float32")
    copy = copier.copy(folded)
    for layer, new in copier.replaced.items():
        set_weights(layer, new)
    for layer in layers_of(copy):
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    return copy


def _check_kernels(model):
    for layer in layers_of(model):
        if type(layer) is FakeQuantization or not has_float_kernel(layer):
            raise ValueError(
                "`quantize_aware` needs a model with plain kernels. Received: "
                f"{layer.name!r}, which is quantized or has LoRA. Give it the "
                "model from before"
            )


def is_quantization_aware(model):
    """Return whether a model comes from `quantize_aware`."""
    return any(type(layer) is FakeQuantization for layer in layers_of(model))


def with_constants(model):
    """Return what goes into the file: fixed ranges and rounded kernels."""

    def replace(layer):
        new = as_constant(layer)
        return None if new is None else [new]

    copier = Copier(replace)
    copy = copier.copy(model)
    for layer, (new,) in copier.replaced.items():
        set_rounded_weights(layer, new)
    return copy


class _Replacement:
    """What takes the place of each layer, as a function for a `Copier`."""

    def __init__(self, model, momentum):
        self.momentum = momentum
        self.calls = {}
        self.readers = collections.defaultdict(list)
        self.passed = {}
        for graph in graphs(model):
            for tensor in graph.outputs:
                self.readers[id(tensor)].append(None)
            for node in nodes(graph):
                self._note(node)

    def _note(self, node):
        operation = node.operation
        if self.calls.setdefault(operation, node) is not node:
            raise ValueError(
                "`quantize_aware` needs layers that are called once: in the "
                "file, each call has a range of its own. Give each call a "
                "layer of its own. "
                f"Received: {operation.name!r}, called more than once"
            )
        for tensor in node.input_tensors:
            self.readers[id(tensor)].append(operation)
        if has_graph(operation):
            for inner, outer in zip(operation.inputs, node.input_tensors):
                self.passed[id(inner)] = outer

    def __call__(self, operation):
        new, node = [operation], self.calls[operation]
        kind = type(operation)
        if kind in BLOCKS and BLOCKS[kind].fits(operation, node):
            new = [block(operation, self.momentum)]
        elif _has_rounded_kernel(operation):
            new = self._with_ranges_between(_with_rounded_kernel(operation))
            if self._is_raw(node.input_tensors[0]):
                new.insert(0, self._range(f"{operation.name}_input"))
        if self._is_rounded(operation, new[-1]):
            new.append(self._range(new[-1].name))
        return None if new == [operation] else new

    def _with_ranges_between(self, parts):
        first, *others = parts
        new = [first]
        for layer in others:
            new += [self._range(new[-1].name), layer]
        return new

    def _range(self, name):
        return FakeQuantization(
            self.momentum, name=f"{name}_range", dtype="float32"
        )

    def _is_raw(self, tensor):
        """Return whether a tensor is an input that nothing has rounded."""
        operation, _, index = tensor._keras_history
        if has_graph(operation):
            return self._is_raw(operation.outputs[index])
        if isinstance(operation, layers.InputLayer):
            outer = self.passed.get(id(tensor))
            return outer is None or self._is_raw(outer)
        return type(operation) in _MOVING and self._is_raw(
            self.calls[operation].input_tensors[0]
        )

    def _is_rounded(self, operation, last):
        """Return whether a range follows the last layer for an operation."""
        outputs = self.calls[operation].outputs
        if len(outputs) != 1 or "float" not in outputs[0].dtype:
            return False
        if type(operation) in _MOVING or _function(last) in _FIXED_RANGE:
            return False
        (reader, *others) = self.readers[id(outputs[0])]
        fused = _takes_relu(last) and not others and _is_relu(reader)
        return not fused


def _has_rounded_kernel(layer):
    if type(layer) is layers.EinsumDense:
        return is_projection(layer)
    return type(layer) in (*QUANTIZED, layers.SeparableConv2D)


def _with_rounded_kernel(layer):
    """Return the layers that a layer with a kernel becomes."""
    if type(layer) is layers.SeparableConv2D:
        new = separated(layer)
    else:
        new = [quantized(layer)]
    function = new[-1].activation
    if function not in _FUSED:
        new[-1].activation = keras.activations.linear
        name = f"{layer.name}_activation"
        new.append(layers.Activation(function, name=name, dtype="float32"))
    return new


def _takes_relu(layer):
    """Return whether a ReLU after a layer is one operation with it."""
    linear = getattr(layer, "activation", None) is keras.activations.linear
    return type(layer).__name__ == "Add" or (
        type(layer) in QUANTIZED.values() and linear
    )


def _is_relu(operation):
    if type(operation) is layers.ReLU:
        slopes = (operation.negative_slope, operation.threshold)
        return operation.max_value in (None, 6) and not any(slopes)
    return _function(operation) in ("relu", "relu6")


def _function(operation):
    """Return the name of what is applied to each value, as Keras has it."""
    if type(operation) is layers.Activation:
        return getattr(operation.activation, "__name__", None)
    return type(operation).__name__.lower()
