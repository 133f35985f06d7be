"""`fold_batch_norm`: merge BatchNormalizations into the kernels before them.

At inference, a BatchNormalization multiplies and shifts each channel by
constants. The output of a convolution is linear in its kernel and bias, so the
kernel and bias can include these constants. This saves one pass over the
feature maps, unless a compiler has already fused the two layers.

The given model is not changed. Its graph is built again, layer by layer from
the configs, and the weights are copied.
"""

import collections

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill._graphs._copier import new_layer
from keras_distill._graphs._walk import check_graph
from keras_distill._graphs._walk import graphs
from keras_distill._graphs._walk import has_float_kernel
from keras_distill._graphs._walk import nodes

# Grouped by the axes of their kernels. A subclass may compute something else,
# so only these exact classes are folded.
_OUTPUT_CHANNELS_LAST = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Dense,
)
_OUTPUT_CHANNELS_BEFORE_INPUT = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
_INPUT_CHANNELS_BY_MULTIPLIER = (
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)
_TWO_KERNELS = (layers.SeparableConv1D, layers.SeparableConv2D)
_FOLDABLE = (
    *_OUTPUT_CHANNELS_LAST,
    *_OUTPUT_CHANNELS_BEFORE_INPUT,
    *_INPUT_CHANNELS_BY_MULTIPLIER,
    *_TWO_KERNELS,
)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy for inference, with BatchNormalizations folded.

    A BatchNormalization that directly follows a convolution or a Dense layer is
    merged into the kernel `w` and bias `b` of that layer and removed:

        w' = w * gamma / sqrt(var + eps)
        b' = beta + (b - mean) * gamma / sqrt(var + eps)

    The copy has the outputs of `model` with `training=False`, up to rounding.
    It is for inference: a folded normalization can no longer update its
    statistics. Measure the time: the backend may already fuse these layers.

    A BatchNormalization is folded if it follows a Conv1D, Conv2D, Conv3D, one
    of their Transpose, Depthwise and Separable variants, or a Dense layer, also
    in nested models. The layer must have no activation, be called once, compute
    in the same dtype, and no other layer may read its output. Other
    BatchNormalizations are kept: after an activation, before a convolution, in
    shared layers, over another axis. A model without a foldable
    BatchNormalization is copied unchanged.

    Args:
        model: a built functional or Sequential model. It is not changed, and
            the copy shares no variable with it.

    Returns:
        A functional or Sequential model, not compiled, with the structure of
        inputs and outputs, the layer names and the `trainable` flags of
        `model`, without the folded layers. A subclass of these two classes is
        not kept.

    Raises:
        ValueError: if the model has no layer graph: subclassed models, models
            with a custom `call`, and Sequential models without an input.

    Example:

    ```python
    import keras
    from keras_distill.compression import fold_batch_norm

    teacher = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=5
    )
    fast_teacher = fold_batch_norm(teacher)
    print(len(teacher.layers), len(fast_teacher.layers))  # 156 104
    ```
    """
    check_graph("fold_batch_norm", model)
    folded = _folded_into(model)
    norms = {layer: norm for norm, layer in folded.items()}

    def replace(original):
        if original in folded:
            return []
        if original in norms:
            return [new_layer(original, use_bias=True)]
        return None

    copier = Copier(replace)
    result = copier.copy(model)
    for original, norm in norms.items():
        _fold(norm, original, *copier.replaced[original])
    return result


def _folded_into(model):
    """Return `{BatchNormalization: layer before it}` for all to be folded."""
    found = graphs(model)
    calls_of_graphs = [node for graph in found for node in nodes(graph)]
    calls = collections.Counter(id(node.operation) for node in calls_of_graphs)
    # A layer that two graphs share counts twice. The outputs of a graph count
    # as read.
    readers = collections.Counter(
        id(tensor)
        for tensors in (
            *(node.input_tensors for node in calls_of_graphs),
            *(graph.outputs for graph in found),
        )
        for tensor in tensors
    )
    pairs = {}
    for node in calls_of_graphs:
        norm = node.operation
        if type(norm) is not layers.BatchNormalization:
            continue
        tensor, *masks = node.input_tensors
        layer = tensor._keras_history[0]
        alone = calls[id(norm)] == calls[id(layer)] == readers[id(tensor)] == 1
        if alone and not masks and _can_include(layer, norm):
            pairs[norm] = layer
    return pairs


def _can_include(layer, norm):
    """Return whether a layer can include the normalization after it."""
    if type(layer) not in _FOLDABLE or layer.activation not in (
        None,
        keras.activations.linear,
    ):
        return False
    if not has_float_kernel(layer):
        return False
    # Otherwise the next layer would get another dtype.
    if layer.compute_dtype != norm.compute_dtype:
        return False
    first = getattr(layer, "data_format", None) == "channels_first"
    rank = norm.input_spec.ndim
    return norm.axis % rank == (1 if first else rank - 1)


def _fold(norm, original, copy):
    mean = _float64(norm.moving_mean)
    scale = 1.0 / np.sqrt(_float64(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * _float64(norm.gamma)
    bias = _float64(original.bias) if original.use_bias else 0.0
    bias = (bias - mean) * scale
    if norm.center:
        bias = bias + _float64(norm.beta)
    copy.bias.assign(bias)
    if type(original) in _TWO_KERNELS:
        copy.depthwise_kernel.assign(_float64(original.depthwise_kernel))
        copy.pointwise_kernel.assign(
            _float64(original.pointwise_kernel) * scale
        )
        return
    kernel = _float64(original.kernel)
    if type(original) in _OUTPUT_CHANNELS_BEFORE_INPUT:
        scale = scale[:, np.newaxis]
    elif type(original) in _INPUT_CHANNELS_BY_MULTIPLIER:
        scale = scale.reshape(kernel.shape[-2:])
    copy.kernel.assign(kernel * scale)


def _float64(variable):
    return np.array(ops.convert_to_numpy(variable)).astype("float64")
