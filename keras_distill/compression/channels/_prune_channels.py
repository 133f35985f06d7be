"""`prune_channels`: remove the least important channels of a model.

A channel is removed together with every weight that depends on it: the filter
that makes it, its normalization, and the rows of all kernels that read it. In
residual networks, it is removed from all layers whose outputs are summed. The
result is a plain model without masks, so it is smaller and faster on any
device.
"""

import collections
import operator
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill._graphs._copier import copy_trainable_flags
from keras_distill._graphs._copier import new_layer
from keras_distill._graphs._layers import find_layers
from keras_distill._graphs._layers import layers_inside
from keras_distill.compression._models import model_to_rebuild
from keras_distill.compression.channels._coupling import couple
from keras_distill.compression.channels._importance import Importance
from keras_distill.compression.channels._importance import score_channels
from keras_distill.compression.channels._layer_rules import rule_for
from keras_distill.compression.channels._ratios import check_ratio
from keras_distill.compression.channels._ratios import ratios_of
from keras_distill.compression.channels._targets import check_target
from keras_distill.compression.channels._targets import fewest_removed
from keras_distill.compression.channels._targets import removal_order


def prune_channels(
    model: keras.Model,
    ratio: float | dict[str, float] | None = None,
    importance: Importance = "l1",
    exclude: str | Sequence[str] = (),
    *,
    macs: int | None = None,
    parameters: int | None = None,
    scope: str = "group",
) -> keras.Model:
    """Return a copy of a model without its least important channels.

    Filters of convolutions and units of Dense layers are removed, with all
    weights that depend on them. Channels that are added or multiplied can only
    be removed together. A *group* is the set of channels that the same layers
    make. In each group, the share `ratio` with the lowest scores is removed,
    rounded to a whole number. At least one channel is kept. With `macs` or
    `parameters`, as few channels are removed as the limit allows.

    The copy computes what `model` computes if the removed channels are zero
    wherever they are read. Usually it is trained again; see
    [the how-to](../how-to/prune-channels.md).

    Channels are followed through convolutions (plain, transposed, depthwise,
    separable), Dense, Embedding, BatchNormalization, PReLU, activations,
    dropout, pooling, padding, cropping, upsampling, Flatten, Reshape, Permute,
    RepeatVector, Concatenate, Attention, and sums, products and other merges
    with broadcasting, as layers or as operators; also in nested models and
    shared layers. All other layers keep the channels that they read and return,
    such as LayerNormalization, softmax, grouped convolutions, recurrent layers
    and custom layers. The inputs and outputs of the model keep all channels
    too. `compare_widths` shows what was removed.

    Sources: [Li et al. 2017](https://arxiv.org/abs/1608.08710) for `"l1"`,
    [Liu et al. 2017](https://arxiv.org/abs/1708.06519) for `"batch_norm"`.

    Args:
        model: a built functional or Sequential model; for a `Distiller`, its
            student. The model is not changed, and the copy shares no variable
            with it.
        ratio: float in [0, 1), the share of each group to remove; or a dict of
            ratios by layer. Layers without a ratio are not pruned. A group has
            the ratio of any of its layers; layers of one group must not have
            different ratios. Pass exactly one of `ratio`, `macs` and
            `parameters`.
        importance: the score of a channel.
            `"l1"`: the sum of the absolute weights of its filter, over all
            layers of the group.
            `"batch_norm"`: the sum of the absolute scales `gamma` of the
            BatchNormalizations of the channel.
            A function that takes a layer that makes channels and returns an
            array of shape `(channels,)`, or None; or a dict of such arrays by
            layer. Scores of coupled channels are added. A group without scores
            is not pruned.
        exclude: a layer whose outputs keep all channels, or a list of layers.
        macs: int, the maximum number of multiply-accumulate operations of the
            copy, as `compare` counts them.
        parameters: int, the maximum number of its weights, with the statistics
            of normalizations.
        scope: `"group"`: every group loses the same share of its channels.
            `"global"`: the channels with the lowest scores of all groups are
            removed, so that groups lose different shares; a score counts
            relative to the mean score of its group. `ratio` is then the share
            of all channels.

    Layers are named by name or path, `"conv_1"` or `"backbone/conv_1"`. In
    `ratio` and `exclude`, the name of a nested model stands for all layers in
    it.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names, the dtype policies and the `trainable` flags of `model`. A
        subclass of these two classes is not kept.

    Raises:
        ValueError: if the model has no layer graph (subclassed models, models
            with a custom `call`, Sequential models without an input), if layers
            share a variable, if an argument is not as described, if no channel
            can be removed, if coupled layers have different ratios, or if a
            limit cannot be reached.

    Example:

    ```python
    import keras
    from keras_distill.compression import prune_channels

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, activation="relu", name="stem")(inputs)
    y = keras.layers.Conv2D(16, 3, padding="same", name="block")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    teacher = keras.Model(inputs, keras.layers.Dense(5)(x))

    student = prune_channels(teacher, 0.5)
    print(student.get_layer("block").filters)  # 8
    print(teacher.count_params(), student.count_params())  # 2853 853
    ```
    """
    model = model_to_rebuild("prune_channels", model)
    limit = check_target(ratio, scope, {"macs": macs, "parameters": parameters})
    ratios = check_ratio(model, 0.0 if ratio is None else ratio)
    excluded = {
        layer
        for named in find_layers(model, exclude, "exclude")
        for layer in layers_inside(named)
    }
    coupling = couple(model, rule_for, excluded)
    scores = score_channels(importance, model, coupling)
    groups = {
        makers: group
        for makers, group in _groups(coupling).items()
        if len(group) > 1 and not np.isnan(scores[group]).all()
    }
    ratios_by_group = ratios_of(groups, ratios)
    if limit is None and scope == "group":
        removed = _lowest(groups, scores, ratios_by_group)
        return _without(model, coupling, removed)
    order = removal_order(list(groups.values()), scores, scope)

    def model_without(number):
        return _without(model, coupling, order[:number])

    if limit is not None:
        return fewest_removed(len(order), model_without, limit)
    share = float(ratios)  # type: ignore[arg-type]
    return model_without(round(share * sum(map(len, groups.values()))))


def _lowest(groups, scores, ratios):
    """Return the channels with the lowest scores of each group."""
    removed = []
    for makers, group in groups.items():
        count = min(round(ratios[makers] * len(group)), len(group) - 1)
        lowest = np.argsort(scores[group], kind="stable")[:count]
        removed += np.array(group)[lowest].tolist()
    return removed


def _without(model, coupling, removed):
    """Return a copy of a model without channels, given by their roots."""
    roots = coupling.roots()
    kept = np.ones(len(roots), bool)
    kept[removed] = False
    return _pruned_copy(model, coupling, kept[roots])


def _groups(coupling):
    """Return `{layers: roots}`: the channels that exactly these layers make.

    A layer may be in several groups. It keeps at least one channel, because
    each group does.
    """
    roots = coupling.roots()
    makers = collections.defaultdict(list)
    for layer, made in coupling.made.items():
        for root in np.unique(roots[made.numbers]).tolist():
            makers[root].append(layer)
    makers.pop(0, None)
    groups = collections.defaultdict(list)
    for root, several in makers.items():
        groups[tuple(several)].append(root)
    return groups


def _pruned_copy(model, coupling, kept):
    """Return a copy of the model with the kept channels only."""

    def replace(layer):
        config = _smaller_config(layer, coupling, kept)
        cuts = coupling.cuts.get(layer, {})
        if config or not all(kept[numbers].all() for numbers in cuts.values()):
            return [new_layer(layer, **config)]
        return None

    def shape_of(tensor):
        channels = coupling.inputs.get(id(tensor))
        return _smaller_shape(tensor.shape, channels, 0, kept)

    copier = Copier(replace, shape_of)
    copy = copier.copy(model)
    for layer, (new,) in copier.replaced.items():
        copy_trainable_flags(layer, new)
        _copy_kept_slices(layer, new, coupling.cuts.get(layer, {}), kept)
    return copy


def _smaller_config(layer, coupling, kept):
    """Return the changes in the config of a layer."""
    if layer in coupling.made:
        made = coupling.made[layer]
        if not kept[made.numbers].all():
            return {made.setting: int(kept[made.numbers].sum())}
    if layer in coupling.shapes:
        shape, channels = coupling.shapes[layer]
        if not kept[channels.numbers].all():
            return {"target_shape": _smaller_shape(shape, channels, 1, kept)}
    return {}


def _smaller_shape(shape, channels, offset, kept):
    if channels is None:
        return shape
    shape = list(shape)
    shape[channels.axis - offset] = int(kept[channels.numbers].sum())
    return tuple(shape)


def _copy_kept_slices(layer, new, cuts, kept):
    cuts_of = collections.defaultdict(list)
    for (weight, axis), numbers in cuts.items():
        variable = operator.attrgetter(weight)(layer)
        cuts_of[id(variable)].append((axis, np.flatnonzero(kept[numbers])))
    for old, smaller in zip(layer.variables, new.variables):
        value = ops.convert_to_numpy(old)
        for axis, indices in cuts_of[id(old)]:
            value = np.take(value, indices, axis)
        # A new array: on JAX, an array that two variables hold would be donated
        # by one of them.
        smaller.assign(np.array(value))
