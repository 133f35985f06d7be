"""What each layer does with channels: one rule per kind of layer.

A rule is a function `(coupling, node, read)`. `node` is the call of a layer or
operation and `read` has the Channels of each tensor that goes in. It tells the
coupling what it joins and cuts, and returns the Channels of the one tensor that
comes out. Rules of layers that take one tensor are written as functions
`(coupling, layer, tensor, channels)`.

A rule is found by the very class of a layer: a class derived from it may
compute something else. Left out on purpose: layers whose numbers change with
the set of channels (softmax, LayerNormalization and its kin), grouped
convolutions, and recurrent layers. They keep all channels.
"""

from keras import layers

from keras_distill.compression import _elementwise
from keras_distill.compression import _merging_rules
from keras_distill.compression import _moving_rules
from keras_distill.compression import _weight_rules
from keras_distill.compression._models import is_plain

_OF_ONE_TENSOR = {
    layers.Activation: _moving_rules.activate,
    layers.BatchNormalization: _weight_rules.normalize,
    layers.Embedding: _weight_rules.embed,
    layers.Flatten: _moving_rules.flatten,
    layers.PReLU: _weight_rules.bend,
    layers.Permute: _moving_rules.permute,
    layers.RepeatVector: _moving_rules.repeat,
    layers.Rescaling: _moving_rules.rescale,
    layers.Reshape: _moving_rules.reshape,
}
for _rule, _classes in {
    _moving_rules.pass_on: _elementwise.LAYERS,
    _weight_rules.project: (
        layers.Conv1D,
        layers.Conv2D,
        layers.Conv3D,
        layers.Dense,
        *_weight_rules.TRANSPOSED,
    ),
    _weight_rules.project_depthwise: (
        layers.DepthwiseConv1D,
        layers.DepthwiseConv2D,
    ),
    _weight_rules.project_separable: (
        layers.SeparableConv1D,
        layers.SeparableConv2D,
    ),
    _moving_rules.move_in_space: (
        layers.AveragePooling1D,
        layers.AveragePooling2D,
        layers.AveragePooling3D,
        layers.Cropping1D,
        layers.Cropping2D,
        layers.Cropping3D,
        layers.MaxPooling1D,
        layers.MaxPooling2D,
        layers.MaxPooling3D,
        layers.UpSampling1D,
        layers.UpSampling2D,
        layers.UpSampling3D,
        layers.ZeroPadding1D,
        layers.ZeroPadding2D,
        layers.ZeroPadding3D,
    ),
    _moving_rules.pool_globally: (
        layers.GlobalAveragePooling1D,
        layers.GlobalAveragePooling2D,
        layers.GlobalAveragePooling3D,
        layers.GlobalMaxPooling1D,
        layers.GlobalMaxPooling2D,
        layers.GlobalMaxPooling3D,
    ),
}.items():
    _OF_ONE_TENSOR |= dict.fromkeys(_classes, _rule)

_OF_SEVERAL_TENSORS = {
    layers.Add: _merging_rules.merge,
    layers.Attention: _merging_rules.attend,
    layers.Average: _merging_rules.merge,
    layers.Concatenate: _merging_rules.concatenate,
    layers.Maximum: _merging_rules.merge,
    layers.Minimum: _merging_rules.merge,
    layers.Multiply: _merging_rules.merge,
    layers.Subtract: _merging_rules.merge,
}


def rule_for(node):
    """Return the rule for the call of a layer or operation, None if none."""
    operation = node.operation
    if len(node.outputs) != 1:
        return None
    if not isinstance(operation, layers.Layer):
        return _rule_for_operation(operation)
    if len(node.input_tensors) > 1:
        return _OF_SEVERAL_TENSORS.get(type(operation))
    rule = _OF_ONE_TENSOR.get(type(operation))
    if rule is None or not is_plain(operation):
        return None
    return lambda coupling, node, read: rule(
        coupling, operation, *node.input_tensors, *read
    )


def _rule_for_operation(operation):
    if _elementwise.is_elementwise_operation(operation):
        return _merging_rules.merge
    return None
