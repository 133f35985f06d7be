"""The channels of a model that can be removed, and the model without some."""

import collections
import functools
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


class RemovableChannels:
    """The channels of a model that can be removed, in groups.

    A channel stands for all that are coupled with it, and has a number.

    Args:
        model, importance, exclude, through_layer_norm: as in `prune_channels`.

    Attributes:
        groups: `{layers: channels}`, the channels that exactly these layers
            make. A layer may be in several groups. It keeps at least one
            channel, because each group does.
        scores: array with the score of each channel.

    Raises:
        ValueError: as `prune_channels` raises it.
    """

    def __init__(
        self,
        model: keras.Model,
        importance: Importance = "l1",
        exclude: str | Sequence[str] = (),
        through_layer_norm: bool = False,
    ) -> None:
        self.model = model_to_rebuild("prune_channels", model)
        excluded = {
            layer
            for named in find_layers(self.model, exclude, "exclude")
            for layer in layers_inside(named)
        }
        rules = functools.partial(
            rule_for, through_layer_norm=through_layer_norm
        )
        self._coupling = couple(self.model, rules, excluded)
        self.scores = score_channels(importance, self.model, self._coupling)
        self.groups = {
            makers: group
            for makers, group in _groups(self._coupling).items()
            if len(group) > 1 and not np.isnan(self.scores[group]).all()
        }

    @property
    def number(self) -> int:
        """The number of channels in all groups."""
        return sum(map(len, self.groups.values()))

    def model_without(self, removed: list[int] | np.ndarray) -> keras.Model:
        """Return a copy of the model without these channels."""
        roots = self._coupling.roots()
        kept = np.ones(len(roots), bool)
        kept[removed] = False
        return _pruned_copy(self.model, self._coupling, kept[roots])


def _groups(coupling):
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
        is_cut = _is_cut(layer, coupling, kept)
        if not is_cut and layer not in coupling.shapes:
            return None
        config = _smaller_config(layer, coupling, kept)
        return [new_layer(layer, **config)] if is_cut or config else None

    def shape_of(tensor):
        channels = coupling.inputs.get(id(tensor))
        return _smaller_shape(tensor.shape, channels, 0, kept)

    copier = Copier(replace, shape_of)
    copy = copier.copy(model)
    for layer, (new,) in copier.replaced.items():
        copy_trainable_flags(layer, new)
        _copy_kept_slices(layer, new, _cuts_inside(layer, coupling), kept)
    return copy


def _cuts_inside(layer, coupling):
    """Return `[(variable, axis, numbers)]` of a layer and the layers in it."""
    if not isinstance(layer, keras.layers.Layer):  # An operation has none.
        return []
    return [
        (operator.attrgetter(weight)(inner), axis, numbers)
        for inner in layers_inside(layer)
        for (weight, axis), numbers in coupling.cuts.get(inner, {}).items()
    ]


def _is_cut(layer, coupling, kept):
    cuts = _cuts_inside(layer, coupling)
    return not all(kept[numbers].all() for *_, numbers in cuts)


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
    if type(layer) is keras.layers.Bidirectional:
        return _smaller_directions(layer, coupling, kept)
    return {}


def _smaller_directions(layer, coupling, kept):
    """Return the changes in the config of a Bidirectional."""
    changes = {}
    for key, inner in (
        ("layer", layer.forward_layer),
        ("backward_layer", layer.backward_layer),
    ):
        direction = layer.get_config()[key]
        direction["config"] |= _smaller_config(inner, coupling, kept)
        # It has the number of features that the original layer reads.
        del direction["build_config"]
        changes[key] = direction
    return changes


def _smaller_shape(shape, channels, offset, kept):
    if channels is None:
        return shape
    shape = list(shape)
    shape[channels.axis - offset] = int(kept[channels.numbers].sum())
    return tuple(shape)


def _copy_kept_slices(layer, new, cuts, kept):
    cuts_of = collections.defaultdict(list)
    for variable, axis, numbers in cuts:
        cuts_of[id(variable)].append((axis, np.flatnonzero(kept[numbers])))
    for old, smaller in zip(layer.variables, new.variables):
        value = ops.convert_to_numpy(old)
        for axis, indices in cuts_of[id(old)]:
            value = np.take(value, indices, axis)
        # A new array: on JAX, an array that two variables hold would be donated
        # by one of them.
        smaller.assign(np.array(value))
