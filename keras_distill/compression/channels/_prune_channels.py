"""`prune_channels`: remove the least important channels of a model.

A channel is removed together with every weight that depends on it: the filter
that makes it, its normalization, and the rows of all kernels that read it. In
residual networks, it is removed from all layers whose outputs are summed. The
result is a plain model without masks, so it is smaller and faster on any
device.
"""

from collections.abc import Sequence

import keras
import numpy as np

from keras_distill.compression.channels._importance import Importance
from keras_distill.compression.channels._ratios import check_ratio
from keras_distill.compression.channels._ratios import ratios_of
from keras_distill.compression.channels._removable_channels import (
    RemovableChannels,
)
from keras_distill.compression.channels._targets import check_target
from keras_distill.compression.channels._targets import removal_order
from keras_distill.compression.channels._targets import to_limit


def prune_channels(
    model: keras.Model,
    ratio: float | dict[str, float] | None = None,
    importance: Importance = "l1",
    exclude: str | Sequence[str] = (),
    *,
    macs: int | None = None,
    parameters: int | None = None,
    bytes: int | None = None,
    scope: str = "group",
    through_layer_norm: bool = False,
) -> keras.Model:
    """Return a copy of a model without its least important channels.

    Filters of convolutions, units of Dense and recurrent layers and heads of
    MultiHeadAttention are removed, with all weights that depend on them.
    Channels that are added or multiplied can only be removed together. A
    *group* is the set of channels that the same layers make. In each group, the
    share `ratio` with the lowest scores is removed, rounded to a whole number.
    At least one channel is kept. With `macs`, `parameters` or `bytes`, as few
    channels are removed as the limit allows.

    The copy computes what `model` computes if the removed channels are zero
    wherever they are read. Usually it is trained again; see
    [the how-to](../how-to/prune-channels.md).

    Channels are followed through convolutions (plain, transposed, depthwise,
    separable), Dense, Embedding, LSTM, GRU and SimpleRNN (also in
    Bidirectional), MultiHeadAttention, BatchNormalization, PReLU, activations,
    dropout, pooling, padding, cropping, upsampling, Flatten, Reshape, Permute,
    RepeatVector, Concatenate, Attention, and sums, products and other merges
    with broadcasting, as layers or as operators; also in nested models and
    shared layers. All other layers keep the channels that they read and return,
    such as LayerNormalization (without `through_layer_norm`), softmax, grouped
    convolutions, recurrent layers that are stateful or get or return a state,
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
            different ratios. Pass exactly one of `ratio`, `macs`, `parameters`
            and `bytes`.
        importance: the score of a channel.
            `"l1"`: the sum of the absolute weights of its filter, over all
            layers of the group; of a recurrent unit, over its gates and both
            kernels; of a head, over its queries, keys and values.
            `"batch_norm"`: the sum of the absolute scales `gamma` of the
            BatchNormalizations of the channel.
            The scores that `taylor_scores` returns, from data.
            A function that takes a layer that makes channels and returns an
            array of shape `(channels,)`, or None; or a dict of such arrays by
            layer. Scores of coupled channels are added. A group without scores
            is not pruned.
        exclude: a layer whose outputs keep all channels, or a list of layers.
        macs: int, the maximum number of multiply-accumulate operations of the
            copy, as `compare` counts them.
        parameters: int, the maximum number of its weights, with the statistics
            of normalizations.
        bytes: int, the maximum size of its LiteRT file in int8, trained with
            `quantize_aware`. A file is written for each number of channels that
            is tried. `shrink` has more limits, and trains.
        scope: `"group"`: every group loses the same share of its channels.
            `"global"`: the channels with the lowest scores of all groups are
            removed, so that groups lose different shares; a score counts
            relative to the mean score of its group. `ratio` is then the share
            of all channels.
        through_layer_norm: bool. Whether channels are also removed where
            LayerNormalization or RMSNormalization reads them, as in the width
            of a transformer. Their mean and variance are over all channels, so
            these copies do not compute what `model` computes, also if the
            removed channels are zero. Train such a copy again.

    Layers are named by name or path, `"conv_1"` or `"backbone/conv_1"`. In
    `ratio` and `exclude`, the name of a nested model stands for all layers in
    it.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names, the dtype policies and the `trainable` flags of `model`. A
        subclass of these two classes is not kept.

    Raises:
        ImportError: if `bytes` is given and LiteRT is not installed.
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
    limit = check_target(
        ratio, scope, {"macs": macs, "parameters": parameters, "bytes": bytes}
    )
    channels = RemovableChannels(model, importance, exclude, through_layer_norm)
    ratios = check_ratio(channels.model, 0.0 if ratio is None else ratio)
    ratios_by_group = ratios_of(channels.groups, ratios)
    if limit is None and scope == "group":
        return channels.model_without(_lowest(channels, ratios_by_group))
    order = removal_order(channels, scope)
    if limit is not None:
        return to_limit(channels, order, limit)
    share = float(ratios)  # type: ignore[arg-type]
    return channels.model_without(order[: round(share * channels.number)])


def _lowest(channels, ratios):
    """Return the channels with the lowest scores of each group."""
    removed = []
    for makers, group in channels.groups.items():
        count = min(round(ratios[makers] * len(group)), len(group) - 1)
        lowest = np.argsort(channels.scores[group], kind="stable")[:count]
        removed += np.array(group)[lowest].tolist()
    return removed
