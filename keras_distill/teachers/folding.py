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
from keras import tree

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

# What a model computes only if it leaves `call` to Keras.
_CALLS_OF_GRAPHS = ("Functional.call", "Sequential.call")


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
    from keras_distill import fold_batch_norm

    teacher = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=5
    )
    fast_teacher = fold_batch_norm(teacher)
    print(len(teacher.layers), len(fast_teacher.layers))  # 156 104
    ```
    """
    if not _has_graph(model):
        raise ValueError(
            "`fold_batch_norm` needs a functional model, or a Sequential model "
            "with an input: in others it can't be seen which layer follows "
            "which. If parts of your model are such, fold these. "
            f"Received: model={model!r} of type {type(model).__name__}"
        )
    copier = _Copier(_folded_into(model))
    result = copier.graph(model)
    copier.carry_over_weights()
    return result


def _has_graph(model):
    # `outputs` of a Sequential model raises an AttributeError before it knows
    # its input.
    return (
        isinstance(model, keras.Model)
        and hasattr(model, "outputs")
        and type(model).call.__qualname__ in _CALLS_OF_GRAPHS
    )


def _folded_into(model):
    """Return `{BatchNormalization: layer}` for each that can be folded."""
    graphs = _graphs(model)
    nodes = [node for graph in graphs for node in _nodes(graph)]
    calls = collections.Counter(id(node.operation) for node in nodes)
    # A layer shared by two graphs counts for both. Results count as read.
    readers = collections.Counter(
        id(tensor)
        for tensors in (
            *(node.input_tensors for node in nodes),
            *(graph.outputs for graph in graphs),
        )
        for tensor in tensors
    )
    pairs = {}
    for node in nodes:
        norm = node.operation
        if type(norm) is not layers.BatchNormalization:
            continue
        tensor, *masks = node.input_tensors
        layer = tensor._keras_history[0]
        alone = calls[id(norm)] == calls[id(layer)] == readers[id(tensor)] == 1
        if alone and not masks and _takes(layer, norm):
            pairs[norm] = layer
    return pairs


def _graphs(model):
    """Return the model and all models in it, each once."""
    found, waiting = {}, [model]
    while waiting:
        graph = waiting.pop()
        if id(graph) not in found:
            found[id(graph)] = graph
            inside = [node.operation for node in _nodes(graph)]
            waiting += filter(_has_graph, inside)
    return list(found.values())


def _nodes(graph):
    """Return the calls that lead to the outputs of a model, each once.

    The list of a layer's calls is no help here: it has calls from other models
    too, and from the time before a Sequential model got its next layer.
    """
    found, waiting = {}, list(graph.outputs)
    while waiting:
        operation, index, _ = waiting.pop()._keras_history
        node = operation._inbound_nodes[index]
        if id(node) not in found:
            found[id(node)] = node
            waiting += node.input_tensors
    return list(found.values())


def _takes(layer, norm):
    """Return whether a layer computes what a normalization after it does."""
    if type(layer) not in _FOLDABLE or layer.activation not in (
        None,
        keras.activations.linear,
    ):
        return False
    # Kernels that are more than one variable, or not of floats.
    if getattr(layer, "lora_enabled", False) or layer.quantization_mode:
        return False
    # Else what follows would get another dtype.
    if layer.compute_dtype != norm.compute_dtype:
        return False
    first = getattr(layer, "data_format", None) == "channels_first"
    rank = norm.input_spec.ndim
    return norm.axis % rank == (1 if first else rank - 1)


class _Copier:
    """Copies graphs and keeps what is shared in them shared.

    Args:
        folded: `{BatchNormalization: layer}`, what is left out and where its
            work goes.
    """

    def __init__(self, folded):
        self.folded = folded
        self.norms = {layer: norm for norm, layer in folded.items()}
        self.copies = {}

    def graph(self, model):
        """Return the copy of a model, with initial weights."""
        options = {"name": model.name, "trainable": model.trainable}
        if isinstance(model, keras.Sequential):
            kept = [part for part in model.layers if part not in self.folded]
            return keras.Sequential(
                [_new_input(model.inputs[0]), *map(self.operation, kept)],
                **options,
            )
        # `clone_model` would compile the copy of a compiled model too.
        plain = keras.Model(model.input, model.output)
        clone = keras.models.clone_model(
            plain,
            input_tensors=tree.map_structure(_new_input, plain.input),
            clone_function=self.operation,
        )
        # Given to the constructor, `trainable` does not reach the layers, which
        # have flags of their own.
        return keras.Model(clone.input, clone.output, **options)

    def operation(self, original):
        """Return the copy of a layer, nested model or operation."""
        if original in self.folded:
            return _pass_on
        if original not in self.copies:
            if _has_graph(original):
                copy = self.graph(original)
            else:
                config = original.get_config()
                if original in self.norms:
                    config["use_bias"] = True
                copy = original.__class__.from_config(config)
            self.copies[original] = copy
        return self.copies[original]

    def carry_over_weights(self):
        """Give each copied layer the weights of the one it was copied from."""
        for original, copy in self.copies.items():
            if original in self.norms:
                _fold(self.norms[original], original, copy)
            elif isinstance(original, layers.Layer):
                if not _has_graph(original):
                    _carry_over(original, copy)


def _new_input(tensor):
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=tensor.name,
        optional=getattr(tensor._keras_history[0], "optional", False),
    )


def _pass_on(inputs, **kwargs):
    return inputs


def _carry_over(original, copy):
    # As in saving, because some layers compute things from loaded weights.
    for old, new in zip(original._flatten_layers(), copy._flatten_layers()):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
        store = {}
        old.save_own_variables(store)
        # Through arrays of their own: on JAX, an array that two variables held
        # would be donated by one of them.
        new.load_own_variables(
            {k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()}
        )


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
