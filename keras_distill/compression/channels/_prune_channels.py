"""prune_channels: a narrower model, with the channels that matter least gone.

A channel leaves with everything that belongs to it: the filter that makes it,
its normalization, and the rows of all kernels that read it. In residual
networks it leaves every layer whose outputs are summed with it at once. The
smaller model is a plain one: nothing is masked, so it is smaller and faster
everywhere.
"""

import collections
import operator

import numpy as np
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill._graphs._copier import carry_over_flags
from keras_distill._graphs._copier import new_layer
from keras_distill._graphs._layers import find_layers
from keras_distill._graphs._layers import layers_inside
from keras_distill.compression._models import check_model
from keras_distill.compression.channels._coupling import couple
from keras_distill.compression.channels._importance import score_channels
from keras_distill.compression.channels._layer_rules import rule_for
from keras_distill.compression.channels._ratios import check_ratio
from keras_distill.compression.channels._ratios import ratios_of


def prune_channels(model, ratio, importance="l1", exclude=()):
    """Return a narrower copy of a model, without its least important channels.

    Filters of convolutions and units of Dense layers are removed for good, with
    all that belongs to them. Channels that meet in a sum or product leave
    together; a *group* is the set of channels that the same layers make. Of
    each group, the share `ratio` with the lowest scores leaves, rounded to a
    whole number, and at least one channel stays.

    The copy computes what `model` computes when the removed channels are zero
    for all who read them. Usually it is trained again; see
    [the how-to](../how-to/prune-channels.md).

    Channels are followed through convolutions (plain, transposed, depthwise,
    separable), Dense, Embedding, BatchNormalization, PReLU, activations,
    dropout, pooling, padding, cropping, upsampling, Flatten, Reshape, Permute,
    RepeatVector, Concatenate, Attention, and sums, products and other merges
    with broadcasting, as layers or as operators; in nested models and shared
    layers too. The inputs and outputs of the model keep all channels, and so
    does whatever enters or leaves a layer that is not in this list:
    LayerNormalization, softmax, grouped convolutions, recurrent layers, layers
    of your own.

    Sources: [Li et al. 2017](https://arxiv.org/abs/1608.08710) for `"l1"`,
    [Liu et al. 2017](https://arxiv.org/abs/1708.06519) for `"batch_norm"`.

    Args:
        model: a built functional or Sequential model; of a `Distiller`, the
            student counts. It stays as it is and shares no variable with the
            copy.
        ratio: the share of each group to remove, at least 0 and below 1; or a
            dict of such shares by layer, while layers without one stay as they
            are. A group takes the share of any of its layers, which must not
            contradict each other.
        importance: what the score of a channel is.
            `"l1"`: the sum of the absolute weights of its filter; in a group of
            several layers, over all of them.
            `"batch_norm"`: the sum of the absolute scales `gamma` of the
            BatchNormalizations that it goes through.
            A function of a layer that makes channels, which returns an array of
            shape `(channels,)` or None; or a dict of such arrays by layer.
            Scores of several layers are added up. A group without any score
            stays whole.
        exclude: a layer whose outputs keep all channels, or a list of them.

    Layers are named by name or path, `"conv_1"` or `"backbone/conv_1"`; in
    `ratio` and `exclude`, a nested model stands for all layers in it.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names, the dtype policies and the `trainable` flags of `model`. The
        class of a model derived from these two is not kept.

    Raises:
        ValueError: if the model has no graph of layers (subclassed models,
            models with a `call` of their own, Sequential models without an
            input), if layers share a variable, if an argument is not as
            described, if there is no channel that could be removed, or if
            coupled layers are given different ratios.

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
    model = check_model("prune_channels", model)
    ratio = check_ratio(model, ratio)
    spared = {
        layer
        for named in find_layers(model, exclude, "exclude")
        for layer in layers_inside(named)
    }
    coupling = couple(model, rule_for, spared)
    scores = score_channels(importance, model, coupling)
    return _without(model, coupling, _kept(coupling, scores, ratio))


def _kept(coupling, scores, ratio):
    """Return an array of bools: whether to keep the channel of each number."""
    groups = {
        makers: group
        for makers, group in _groups(coupling).items()
        if len(group) > 1 and not np.isnan(scores[group]).all()
    }
    ratios = ratios_of(groups, ratio)
    roots = coupling.roots()
    kept = np.ones(len(roots), bool)
    for makers, group in groups.items():
        count = min(round(ratios[makers] * len(group)), len(group) - 1)
        lowest = np.argsort(scores[group], kind="stable")[:count]
        kept[np.array(group)[lowest]] = False
    return kept[roots]


def _groups(coupling):
    """Return `{layers: roots}` of all channels that the same layers make.

    So every layer has a whole group of its own in each list that it is in, and
    keeps a channel if every group does.
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


def _without(model, coupling, kept):
    """Return the copy that has only the channels which are kept."""

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
        carry_over_flags(layer, new)
        _carry_over_slices(layer, new, coupling.cuts.get(layer, {}), kept)
    return copy


def _smaller_config(layer, coupling, kept):
    """Return what changes in the config of a layer."""
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


def _carry_over_slices(layer, new, cuts, kept):
    cuts_of = collections.defaultdict(list)
    for (weight, axis), numbers in cuts.items():
        variable = operator.attrgetter(weight)(layer)
        cuts_of[id(variable)].append((axis, np.flatnonzero(kept[numbers])))
    for old, smaller in zip(layer.variables, new.variables):
        value = ops.convert_to_numpy(old)
        for axis, indices in cuts_of[id(old)]:
            value = np.take(value, indices, axis)
        # Through an array of its own: on JAX, one that two variables held would
        # be donated by one of them.
        smaller.assign(np.array(value))
