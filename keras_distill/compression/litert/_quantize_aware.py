"""`quantize_aware`: quantization-aware training for int8.

This module decides where the copy rounds: in the same places as a LiteRT file.
These are the input of the first kernel and the output of each layer, with two
exceptions: a layer that the file fuses with the next ReLU, and layers that only
move values.
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
from keras_distill.compression._models import layers_of
from keras_distill.compression._models import model_to_rebuild
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

# Layers that only move values, so their outputs have the range of their inputs.
# (An average pooling rounds its mean to the values of its input.)
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
# Functions with the same range in each file, so there is nothing to track. With
# rounding, a probability may become zero, and the loss infinite.
_FIXED_RANGE = ("sigmoid", "softmax", "tanh")


def quantize_aware(model: keras.Model, momentum: float = 0.99) -> keras.Model:
    """Return a copy of a model that rounds like a LiteRT file in int8.

    Train the copy, with `fit()` or as the student of a `Distiller`. Then write
    it with `export_litert(..., precision="int8")`. In the copy

    - each kernel of a Dense, EinsumDense, Conv1D, Conv2D, DepthwiseConv2D,
      SeparableConv2D or MultiHeadAttention is rounded to 255 values for each
      output channel,
    - activations are rounded to 256 values of a range. The range is a moving
      average of the minimum and maximum of the training batches. This includes
      the activations inside MultiHeadAttention and LayerNormalization, except
      for the variance and its products, which 8 bits cannot represent,
    - each BatchNormalization after a convolution is folded into its kernel (see
      `fold_batch_norm`), and the others stay in inference mode,
    - gradients pass through the rounding unchanged (straight-through
      estimator).

    A SeparableConv2D becomes a layer `"{name}_depthwise"` and a Conv2D with the
    same name. A layer whose activation is a separate operation in the file,
    such as `"silu"`, becomes two layers, the second named
    `"{name}_activation"`. Unsupported layers, such as recurrent ones, compute
    in float32, with a rounded result; `export_litert` names them. All layers
    compute in float32, regardless of their dtype policy.

    Train with a small learning rate, such as a tenth of the last one, because
    the model is already trained.

    Source: [Jacob et al. 2018](https://arxiv.org/abs/1712.05877).

    Args:
        model: a built functional or Sequential model, with nested models or
            not; for a `Distiller`, its student. The model is not changed, and
            the copy shares no variable with it.
        momentum: float in [0, 1], the momentum of the moving averages of the
            ranges.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names and the `trainable` flags of `model`. It can be saved and loaded.
        Import `keras_distill` before loading it.

    Raises:
        ValueError: if the model has no layer graph, if a layer is called more
            than once or shares a variable with another layer, or if a layer is
            already quantized.

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
    model = model_to_rebuild("quantize_aware", model)
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
                "`quantize_aware` requires layers with float kernels. "
                f"Received: {layer.name!r}, which is quantized or has LoRA. "
                "Pass the model from before quantization or LoRA."
            )


def is_quantization_aware(model: keras.Model) -> bool:
    """Return whether a model comes from `quantize_aware`."""
    return any(type(layer) is FakeQuantization for layer in layers_of(model))


def with_constants(model: keras.Model) -> keras.Model:
    """Return a copy for the file, with fixed ranges and rounded kernels."""

    def replace(layer):
        new = as_constant(layer)
        return None if new is None else [new]

    copier = Copier(replace)
    copy = copier.copy(model)
    for layer, (new,) in copier.replaced.items():
        set_rounded_weights(layer, new)
    return copy


class _Replacement:
    """The function of a `Copier` that returns the new layers for each layer.

    Attributes:
        calls: `{layer: node}`, the only call of each layer.
        readers: `{id of a tensor: [layers that read it]}`, with None for an
            output of a graph.
        outer_tensors: `{id of a nested model's input: tensor given to it}`.
    """

    def __init__(self, model, momentum):
        self.momentum = momentum
        self.calls = {}
        self.readers = collections.defaultdict(list)
        self.outer_tensors = {}
        for graph in graphs(model):
            for tensor in graph.outputs:
                self.readers[id(tensor)].append(None)
            for node in nodes(graph):
                self._record(node)

    def _record(self, node):
        operation = node.operation
        if self.calls.setdefault(operation, node) is not node:
            raise ValueError(
                "`quantize_aware` requires that each layer is called once, "
                "because each call has its own range in the file. Use a "
                "separate layer for each call. "
                f"Received: {operation.name!r}, called more than once"
            )
        for tensor in node.input_tensors:
            self.readers[id(tensor)].append(operation)
        if has_graph(operation):
            for inner, outer in zip(operation.inputs, node.input_tensors):
                self.outer_tensors[id(inner)] = outer

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
        """Return whether a tensor is a model input that was not rounded."""
        operation, _, index = tensor._keras_history
        if has_graph(operation):
            return self._is_raw(operation.outputs[index])
        if isinstance(operation, layers.InputLayer):
            outer = self.outer_tensors.get(id(tensor))
            return outer is None or self._is_raw(outer)
        return type(operation) in _MOVING and self._is_raw(
            self.calls[operation].input_tensors[0]
        )

    def _is_rounded(self, operation, last):
        """Return whether the output of a layer gets a range.

        Args:
            operation: the original layer.
            last: the last of the new layers.
        """
        outputs = self.calls[operation].outputs
        if len(outputs) != 1 or "float" not in outputs[0].dtype:
            return False
        if type(operation) in _MOVING or _function(last) in _FIXED_RANGE:
            return False
        (reader, *others) = self.readers[id(outputs[0])]
        fused = _can_fuse_relu(last) and not others and _is_relu(reader)
        return not fused


def _has_rounded_kernel(layer):
    if type(layer) is layers.EinsumDense:
        return is_projection(layer)
    return type(layer) in (*QUANTIZED, layers.SeparableConv2D)


def _with_rounded_kernel(layer):
    """Return the layers that replace a layer with a kernel."""
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


def _can_fuse_relu(layer):
    """Return whether the file fuses a layer with a ReLU after it."""
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
    """Return the name of an activation function, in Keras's spelling."""
    if type(operation) is layers.Activation:
        return getattr(operation.activation, "__name__", None)
    return type(operation).__name__.lower()
