"""factorize: each large kernel as the product of two small ones.

Of all kernels of the same rank, the truncated singular value decomposition is
the nearest to the old one, in the sum of squared differences.
"""

import itertools

import numpy as np
from keras import layers
from keras import ops

from keras_distill import _arguments
from keras_distill._graphs._copier import Copier
from keras_distill._graphs._copier import new_layer
from keras_distill._graphs._layers import values_by_layer
from keras_distill._graphs._walk import graphs
from keras_distill._graphs._walk import nodes
from keras_distill.compression._models import check_model
from keras_distill.compression._models import has_plain_kernel
from keras_distill.compression._models import layers_of


def factorize(model, rank=None, energy=None):
    """Return a copy of a model with kernels of low rank, each as two layers.

    A Dense layer or Conv2D becomes two layers with `rank` channels in between:

        Dense(units)               Dense(rank), Dense(units)
        Conv2D(filters, k x k)     Conv2D(rank, k x k), Conv2D(filters, 1 x 1)

    The first is named `"{name}_in"` (`"{name}_in_2"` if a layer has that name),
    keeps strides, padding and dilation, and has neither bias nor activation;
    the second keeps the name, bias and activation; initializer and regularizer
    of the kernel go to both. As a matrix of shape `(k * k * inputs, filters)`,
    the kernel is approximated by its truncated singular value decomposition
    `u s v`, shared out as `u sqrt(s)` and `sqrt(s) v`. At the full rank of the
    kernel the copy gives the same outputs, up to rounding.

    A layer is replaced only where that saves parameters:
    `rank * (k * k * inputs + filters) < k * k * inputs * filters`. Layers with
    groups, with a constraint on the kernel, quantized ones and those with LoRA
    stay as they are. So do layers of a class derived from Dense or Conv2D.

    Source: [Denton et al. 2014](https://arxiv.org/abs/1404.0736),
    [Zhang et al. 2015](https://arxiv.org/abs/1505.06798).

    Args:
        model: a built functional or Sequential model, which may have others
            inside; of a `Distiller`, the student counts. It stays as it is and
            shares no variable with the copy.
        rank: the rank for all layers, of which those that it would not save
            anything in stay as they are; or a dict of ranks by the names or
            paths of layers (`"conv_1"`, `"backbone/conv_1"`), of which each has
            to save something, while others stay.
        energy: instead of `rank`, the share of the sum of squared singular
            values to keep, above 0 and at most 1. Each layer gets the smallest
            rank that keeps it, and stays as it is if that would save nothing.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names, the dtype policies and the `trainable` flags of `model`. The
        class of a model derived from these two is not kept.

    Raises:
        ValueError: if the model has no graph of layers, if layers share a
            variable, if not exactly one of `rank` and `energy` is given, or if
            a rank saves nothing.

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
    model = check_model("factorize", model)
    if (rank is None) == (energy is None):
        raise ValueError(
            "`factorize` needs either `rank` or `energy`. "
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
    """Return how many singular values keep a share of their energy."""
    kept = np.cumsum(s**2)
    # The rounding of float32 adds ranks that hold no energy. Compared with the
    # last sum and no other, as sums in another order may differ by more.
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
            "`rank` would not save anything in any layer. The largest that "
            f"saves something is {largest}. Received: rank={rank!r}"
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
                "`rank` must name Dense or Conv2D layers, without groups, "
                "constraints on the kernel, quantization or LoRA, and not "
                "inside a layer of another kind. "
                f"Received: {path!r}, which is {layer!r}"
            )
        if rank > _largest_rank(layer):
            raise ValueError(
                f"`rank` would not save anything in the layer {path!r}, whose "
                f"kernel has the shape {tuple(layer.kernel.shape)}. The "
                f"largest that does is {_largest_rank(layer)}. "
                f"Received: rank={rank!r}"
            )
        factors[layer] = _truncated(*_decomposed(layer), rank)
    return factors


def _is_suitable(layer):
    return type(layer) in (layers.Dense, layers.Conv2D) and has_plain_kernel(
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
    """Return the copy that has two layers in the place of each in `factors`."""
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
    """Return the name, with a number if a layer of the model has it."""
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
