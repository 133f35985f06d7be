"""`factorize`: replace each large kernel by the product of two small ones.

Of all kernels of a given rank, the truncated singular value decomposition has
the smallest sum of squared differences from the original kernel.
"""

import itertools

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill import _arguments
from keras_distill._graphs._copier import Copier
from keras_distill._graphs._copier import new_layer
from keras_distill._graphs._layers import values_by_layer
from keras_distill._graphs._walk import graphs
from keras_distill._graphs._walk import nodes
from keras_distill.compression._models import has_replaceable_kernel
from keras_distill.compression._models import layers_of
from keras_distill.compression._models import model_to_rebuild


def factorize(
    model: keras.Model,
    rank: int | dict[str, int] | None = None,
    energy: float | None = None,
) -> keras.Model:
    """Return a copy of a model with low-rank layers.

    A Dense layer or Conv2D becomes two layers with `rank` channels in between:

        Dense(units)               Dense(rank), Dense(units)
        Conv2D(filters, k x k)     Conv2D(rank, k x k), Conv2D(filters, 1 x 1)

    The first layer is named `"{name}_in"` (`"{name}_in_2"` if that name is
    taken). It has the strides, padding and dilation, and neither bias nor
    activation. The second layer has the name, bias and activation. Both get the
    initializer and regularizer of the kernel. The kernel is taken as a matrix
    of shape `(k * k * inputs, filters)` and approximated by its truncated
    singular value decomposition `u s v`. The two kernels are `u sqrt(s)` and
    `sqrt(s) v`. At the full rank of the kernel, the copy has the same outputs,
    up to rounding.

    A layer is replaced only if this saves parameters:
    `rank * (k * k * inputs + filters) < k * k * inputs * filters`. These layers
    are never replaced: layers with groups, with a kernel constraint, quantized
    layers, layers with LoRA, and subclasses of Dense and Conv2D.

    Source: [Denton et al. 2014](https://arxiv.org/abs/1404.0736),
    [Zhang et al. 2015](https://arxiv.org/abs/1505.06798).

    Args:
        model: a built functional or Sequential model, with nested models or
            not; for a `Distiller`, its student. The model is not changed, and
            the copy shares no variable with it.
        rank: int, the rank for all layers where it saves parameters; or a dict
            of ranks by layer name or path (`"conv_1"`, `"backbone/conv_1"`).
            Each rank in the dict must save parameters. Layers that are not in
            the dict are not replaced.
        energy: float in (0, 1], instead of `rank`: the share of the sum of
            squared singular values to keep. Each layer gets the smallest rank
            that keeps this share. Layers where that rank saves no parameters
            are not replaced.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names, the dtype policies and the `trainable` flags of `model`. A
        subclass of these two classes is not kept.

    Raises:
        ValueError: if the model has no layer graph, if layers share a variable,
            if both or neither of `rank` and `energy` are given, or if a rank
            saves no parameters.

    Example:

    ```python
    import keras
    from keras_distill.compression import factorize

    teacher = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    student = factorize(teacher, rank={"hidden": 16})
    print(teacher.count_params(), student.count_params())  # 50890 14282
    ```
    """
    model = model_to_rebuild("factorize", model)
    if (rank is None) == (energy is None):
        raise ValueError(
            "`factorize` requires exactly one of `rank` and `energy`. "
            f"Received: rank={rank!r}, energy={energy!r}"
        )
    if rank is None:
        factors = _by_energy(model, energy)
    elif isinstance(rank, dict):
        factors = _by_ranks(model, rank)
    else:
        factors = _by_rank(model, rank)
    return _with_factors(model, factors)


def _by_energy(model, energy):
    energy = _arguments.fraction("energy", energy)
    if energy == 0:
        raise ValueError(
            f"`energy` must be above 0. Received: energy={energy!r}"
        )
    factors = {}
    for layer in filter(_is_suitable, layers_of(model)):
        u, s, v = _decomposed(layer)
        rank = _smallest_rank(s, energy)
        if rank <= _largest_rank(layer):
            factors[layer] = _truncated(u, s, v, rank)
    return factors


def _smallest_rank(s, energy):
    """Return the number of singular values that keep a share of the energy."""
    kept = np.cumsum(s**2)
    # The tolerance ignores ranks that come from float32 rounding only. The
    # total is the last cumulative sum: a sum in another order may differ by
    # more than the tolerance.
    return 1 + int(np.searchsorted(kept, (energy - 1e-12) * kept[-1]))


def _by_rank(model, rank):
    rank = _arguments.positive_int("rank", rank)
    suitable = [layer for layer in layers_of(model) if _is_suitable(layer)]
    factors = {
        layer: _truncated(*_decomposed(layer), rank)
        for layer in suitable
        if rank <= _largest_rank(layer)
    }
    if not factors:
        largest = max(map(_largest_rank, suitable), default=0)
        raise ValueError(
            "`rank` saves no parameters in any layer. The maximum that saves "
            f"parameters is {largest}. Received: rank={rank!r}"
        )
    return factors


def _by_ranks(model, ranks):
    factors = {}
    named = values_by_layer(model, ranks, "rank")
    replaceable = layers_of(model)
    for layer, (path, rank) in named.items():
        rank = _arguments.positive_int(f"rank[{path!r}]", rank)
        if layer not in replaceable or not _is_suitable(layer):
            raise ValueError(
                "`rank` must name Dense or Conv2D layers without groups, "
                "kernel constraint, quantization or LoRA. They must not be "
                "inside a layer of another class. "
                f"Received: {path!r}, which is {layer!r}"
            )
        if rank > _largest_rank(layer):
            raise ValueError(
                f"`rank` saves no parameters in the layer {path!r}, whose "
                f"kernel has the shape {tuple(layer.kernel.shape)}. The "
                "maximum that saves parameters is "
                f"{_largest_rank(layer)}. "
                f"Received: rank={rank!r}"
            )
        factors[layer] = _truncated(*_decomposed(layer), rank)
    return factors


def _is_suitable(layer):
    kind = type(layer)
    return kind in (layers.Dense, layers.Conv2D) and has_replaceable_kernel(
        layer
    )


def _largest_rank(layer):
    """Return the largest rank that saves parameters, 0 if none does."""
    outputs = layer.kernel.shape[-1]
    inputs = int(np.prod(layer.kernel.shape)) // outputs
    return (inputs * outputs - 1) // (inputs + outputs)


def _decomposed(layer):
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel), "float64")
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return np.linalg.svd(matrix, full_matrices=False)


def _truncated(u, s, v, rank):
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, np.newaxis] * v[:rank]


def _with_factors(model, factors):
    """Return a copy with two layers instead of each layer in `factors`."""
    taken = {
        node.operation.name for graph in graphs(model) for node in nodes(graph)
    }

    def replace(layer):
        if layer not in factors:
            return None
        rank = factors[layer][0].shape[-1]
        return _two_layers(layer, rank, _free_name(f"{layer.name}_in", taken))

    copier = Copier(replace)
    copy = copier.copy(model)
    for layer, (first, second) in copier.replaced.items():
        left, right = factors[layer]
        first.kernel.assign(left.reshape(first.kernel.shape))
        second.kernel.assign(right.reshape(second.kernel.shape))
        if layer.use_bias:
            second.bias.assign(np.array(ops.convert_to_numpy(layer.bias)))
    return copy


def _free_name(name, taken):
    """Return the name, with a number added if the name is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(x for x in itertools.chain([name], numbered) if x not in taken)


def _two_layers(layer, rank, first_name):
    linear = {
        "name": first_name,
        "activation": None,
        "use_bias": False,
        "bias_regularizer": None,
        "bias_constraint": None,
        "activity_regularizer": None,
    }
    if type(layer) is layers.Dense:
        first, second = {"units": rank}, {}
    else:
        first = {"filters": rank}
        second = {
            "kernel_size": 1,
            "strides": 1,
            "padding": "valid",
            "dilation_rate": 1,
        }
    return [new_layer(layer, **linear, **first), new_layer(layer, **second)]
