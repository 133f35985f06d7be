"""fold_batch_norm: a model whose normalizations have gone into its kernels.

In inference a BatchNormalization multiplies and shifts every channel by numbers
that no longer change. After a convolution, whose output is linear in its kernel
and bias, the same can be said in the kernel and bias, and the pass over all the
feature maps is saved. A compiler that fuses it with its neighbours has little
left to gain.

Nothing is folded into the model that was given. Its graph is built anew, layer
by layer from their configs, and the weights are carried over.
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

# By how their kernel lies. A class derived from these may compute something
# else, so only these very classes are folded.
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


def fold_batch_norm(model):
    """Return a copy for inference, with its BatchNormalizations folded away.

    A BatchNormalization that directly follows a convolution or a Dense layer is
    written into the kernel `w` and bias `b` of that layer and leaves the graph:

        w' = w * gamma / sqrt(var + eps)
        b' = beta + (b - mean) * gamma / sqrt(var + eps)

    The copy gives the outputs that `model` gives with `training=False`, up to
    rounding. It is not meant for training: a folded normalization is in
    inference mode forever. How much time it saves depends on what the backend
    fuses by itself: measure it.

    Folded are those after a Conv1D, Conv2D, Conv3D, their Transpose, Depthwise
    and Separable variants, or a Dense layer, in nested models too, if the layer
    has no activation, is called once, computes in the same dtype, and nothing
    else reads its output. Every other BatchNormalization stays as it is: after
    an activation, before a convolution, in shared layers, over another axis.
    That a model has none to fold is no error.

    Args:
        model: a built functional or Sequential model. It stays as it is and
            shares no variable with the copy.

    Returns:
        A functional or Sequential model, not compiled, with the structure of
        inputs and outputs, the names and the `trainable` flags of `model`. Each
        layer keeps its name; the names of folded BatchNormalizations are gone.
        The class of a model derived from these two is not kept.

    Raises:
        ValueError: if the model has no graph of layers: subclassed models,
            models with a `call` of their own, and Sequential models without
            an input.

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
    """Return `{BatchNormalization: layer}` for each that can be folded."""
    found = graphs(model)
    calls_of_graphs = [node for graph in found for node in nodes(graph)]
    calls = collections.Counter(id(node.operation) for node in calls_of_graphs)
    # A layer shared by two graphs counts for both. Results count as read.
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
        if alone and not masks and _takes(layer, norm):
            pairs[norm] = layer
    return pairs


def _takes(layer, norm):
    """Return whether a layer computes what a normalization after it does."""
    if type(layer) not in _FOLDABLE or layer.activation not in (
        None,
        keras.activations.linear,
    ):
        return False
    if not has_float_kernel(layer):
        return False
    # Else what follows would get another dtype.
    if layer.compute_dtype != norm.compute_dtype:
        return False
    first = getattr(layer, "data_format", None) == "channels_first"
    rank = norm.input_spec.ndim
    return norm.axis % rank == (1 if first else rank - 1)


def _fold(norm, original, copy):
    mean = _exact(norm.moving_mean)
    scale = 1.0 / np.sqrt(_exact(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * _exact(norm.gamma)
    bias = _exact(original.bias) if original.use_bias else 0.0
    bias = (bias - mean) * scale
    if norm.center:
        bias = bias + _exact(norm.beta)
    copy.bias.assign(bias)
    if type(original) in _TWO_KERNELS:
        copy.depthwise_kernel.assign(_exact(original.depthwise_kernel))
        copy.pointwise_kernel.assign(_exact(original.pointwise_kernel) * scale)
        return
    kernel = _exact(original.kernel)
    if type(original) in _OUTPUT_CHANNELS_BEFORE_INPUT:
        scale = scale[:, np.newaxis]
    elif type(original) in _INPUT_CHANNELS_BY_MULTIPLIER:
        scale = scale.reshape(kernel.shape[-2:])
    copy.kernel.assign(kernel * scale)


def _exact(variable):
    return np.array(ops.convert_to_numpy(variable)).astype("float64")
