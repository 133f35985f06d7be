"""`WeightSharing`: train each layer with a few distinct values.

The callback makes the clusters once, by k-means. Inside each training step, the
optimizer hook changes a cluster as one value (`_kept_values.py`).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _arguments
from keras_distill._graphs._layers import has_layer
from keras_distill._graphs._layers import values_by_layer
from keras_distill.compression._models import student_of
from keras_distill.compression.weights import _weight_selection
from keras_distill.compression.weights._kept_values import ZERO
from keras_distill.compression.weights._kept_values import KeptClusters
from keras_distill.compression.weights._optimizer_hook import OptimizerHook

# The number of values of a byte. Zeros are not counted.
_MAX_CLUSTERS = 256


class WeightSharing(keras.callbacks.Callback):
    """Makes the weights of each layer share a few values during `fit()`.

    Before the first step, k-means puts the weights of a layer into
    `num_clusters` clusters. The initial centroids are spread evenly from the
    smallest to the largest weight. Each weight is replaced by its centroid.
    Then the centroids are trained. The gradient of a centroid is the sum over
    its members,

        dL/dc_k = sum of dL/dw_i over the members i of cluster k

    and all members make the step that the optimizer takes with this gradient.
    After each batch, the members of a cluster are exactly equal. Weights that
    are exactly zero stay zero, in an additional cluster: prune first, then
    share.

    All optimizers are supported, because only their gradients are replaced. The
    gradients are sums over thousands of weights. Adam and similar optimizers
    adapt to this; SGD requires a smaller learning rate. Gradient norms for
    clipping are computed over all members.

    A weight that has at most `num_clusters` distinct values keeps them, so a
    run that `BackupAndRestore` resumes continues with the same clusters. For a
    `Distiller`, the weights of the student are shared. After `fit()`, the
    optimizer is restored. Use `KeepCompressed` to keep the shared values in a
    further `fit()`.

    Source: Han, Mao and Dally 2016, "Deep Compression".

    Args:
        num_clusters: int from 2 to 256, for the kernels of all layers; or a
            dict of numbers. Its keys are names, paths or classes of layers with
            kernels (`{"Conv2D": 32, "backbone/logits": 8}`), or names of
            weights (`{"kernel": 8, "bias": 16}`). The name of a nested model
            stands for all layers in it, and a class includes its subclasses.
            Names of layers take precedence over classes, and classes over names
            of weights. Weights that match no key are not shared.

    Raises:
        ValueError: if a number is out of its range; when `fit()` begins, if the
            model is not built, or if a key matches no trainable weight.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill.compression import WeightSharing

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"),
         keras.layers.Dense(3)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    x = np.random.rand(64, 8).astype("float32")
    y = np.random.randint(0, 3, size=64)
    model.fit(x, y, epochs=2, callbacks=[WeightSharing(4)], verbose=0)
    assert len(np.unique(model.layers[0].get_weights()[0])) == 4
    ```
    """

    # The methods that Keras may call from other threads do not use the model.
    async_safe = True

    def __init__(self, num_clusters: int | dict[str, int]) -> None:
        super().__init__()
        if isinstance(num_clusters, dict):
            self.num_clusters = {
                key: _clusters(value) for key, value in num_clusters.items()
            }
        else:
            self.num_clusters = {"kernel": _clusters(num_clusters)}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model = self.model
        _weight_selection.check_ready(model, self)
        chosen = _weights_to_share(student_of(model), self.num_clusters)
        self._hook = OptimizerHook(self)
        self._clusters = [
            KeptClusters(self._hook, weight, number)
            for weight, number in chosen
        ]
        self._hook.kept = list(self._clusters)
        self._hook.compile()

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._hook.chosen:
            return
        # Not in `on_train_begin`: other callbacks may restore weights there.
        for clusters in self._clusters:
            values = ops.convert_to_numpy(clusters.weight).astype("float32")
            clusters.choose(*cluster(values, clusters.number))
        self._hook.chosen = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._hook.remove()
        del self._hook, self._clusters


def cluster(weights: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Put weights into clusters by k-means.

    Args:
        weights: array of float32.
        number: int, the maximum number of clusters of nonzero weights.

    Returns:
        An array of the shape of `weights` with the index of each weight's
        cluster, 0 for zeros; and an array of the values of the clusters, of
        which the first is 0.
    """
    ordered = np.sort(weights[weights != 0], axis=None).astype("float64")
    distinct = np.unique(ordered)
    if len(distinct) <= number:
        centroids = distinct
    else:
        centroids = _k_means(ordered, number)
    borders = (centroids[1:] + centroids[:-1]) / 2
    clusters = np.searchsorted(borders, weights.astype("float64")) + 1
    clusters[weights == 0] = ZERO
    return clusters, np.concatenate([[0.0], centroids]).astype("float32")


def _k_means(ordered, number):
    """Return the centroids of sorted values, without empty clusters.

    In one dimension, a cluster is a range of the sorted values. So an iteration
    is a search for the ends of the ranges, and a difference of cumulative sums.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], number)
    ends = None
    while True:
        borders = (centroids[1:] + centroids[:-1]) / 2
        inner = np.searchsorted(ordered, borders, side="right")
        new_ends = np.concatenate([[0], inner, [len(ordered)]])
        counts = np.diff(new_ends)
        if np.array_equal(new_ends, ends):
            return centroids[counts > 0]
        ends = new_ends
        sums = np.diff(cumulative[ends])
        centroids = np.where(
            counts > 0, sums / np.maximum(counts, 1), centroids
        )


def _weights_to_share(model, num_clusters):
    """Return `(weight, number of clusters)` for all weights to be shared."""
    named = {k: v for k, v in num_clusters.items() if has_layer(model, k)}
    by_layer = values_by_layer(model, named, "num_clusters")
    layers = _weight_selection.layers_by_weight(model)
    kernel_ids = {
        id(kernel) for kernel in _weight_selection.trainable_kernels(model)
    }
    chosen, used = [], set()
    for weight in model.trainable_variables:
        keys = [weight.path]
        if id(weight) in kernel_ids:
            inner_first = layers[id(weight)][::-1]
            keys += [by_layer[x][0] for x in inner_first if x in by_layer]
            keys += _class_names(inner_first)
            keys.append("kernel")
        keys.append(weight.name)
        found = [key for key in keys if key in num_clusters]
        used.update(found)
        if found:
            chosen.append((weight, num_clusters[found[0]]))
    unknown = [key for key in num_clusters if key not in used]
    if unknown or not chosen:
        names = sorted({layers[i][-1].name for i in kernel_ids})
        raise ValueError(
            f"`num_clusters` has keys that match no trainable weight of the "
            f"model {model.name!r}. Received: {unknown}. Layers with kernels: "
            f"{names}."
        )
    return chosen


def _class_names(layers):
    """Return the names of the layers' classes, then of all base classes."""
    own = [type(layer).__name__ for layer in layers]
    bases = [base for layer in layers for base in type(layer).__mro__]
    return own + [base.__name__ for base in bases]


def _clusters(value):
    number = _arguments.positive_int("num_clusters", value)
    if not 2 <= number <= _MAX_CLUSTERS:
        raise ValueError(
            f"`num_clusters` must be from 2 to {_MAX_CLUSTERS}. "
            f"Received: {value}"
        )
    return number
