"""WeightSharing: few distinct values per layer, trained on as such.

The callback makes the clusters once, by k-means. Inside each training step,
`_held.py` moves a cluster as one weight.
"""

import keras
import numpy as np
from keras import ops

from keras_distill import _arguments
from keras_distill._graphs._layers import has_layer
from keras_distill._graphs._layers import values_by_layer
from keras_distill.compression.weights import _kernels
from keras_distill.compression.weights._held_values import ZERO
from keras_distill.compression.weights._held_values import Clusters
from keras_distill.compression.weights._optimizer_hook import OptimizerHook

# As many values as a byte has; the zeros make one more.
_MOST = 256


class WeightSharing(keras.callbacks.Callback):
    """Makes the weights of each layer share a few values, in any `fit()`.

    Before the first step the weights of a layer are put into `num_clusters`
    clusters by k-means, begun with centroids spread evenly from the least to
    the greatest weight, and each weight becomes its centroid. Then the
    centroids are trained: a centroid's gradient is the sum of the gradients of
    its members,

        dL/dc_k = sum of dL/dw_i over the members i of cluster k

    and all members make the step that the optimizer takes with that gradient.
    After every batch the members of a cluster are equal to the bit. Weights
    that are exactly zero stay so, in a cluster of their own beside the others:
    prune first, then share.

    Any optimizer works, since its gradients are replaced and not its rule. It
    sees sums over thousands of weights: Adam and its kin do not mind, SGD needs
    a learning rate smaller by as much. Norms for clipping are taken over all
    members.

    A model that has no more distinct values than clusters keeps its values, so
    a run resumed by `BackupAndRestore` goes on with the clusters it had. With a
    `Distiller`, its student is changed. After `fit()` the optimizer is as it
    was, and nothing holds the clusters together in further training unless it
    has `KeepCompressed()` among its callbacks.

    Source: Han, Mao and Dally 2016, "Deep Compression".

    Args:
        num_clusters: int from 2 to 256, for the kernels of every layer; or a
            dict of such, whose keys are names, paths or classes of layers,
            whose kernels are meant (`{"Conv2D": 32, "backbone/logits": 8}`), or
            names of weights (`{"kernel": 8, "bias": 16}`). A nested model
            stands for all layers in it, and a class for those derived from it.
            The name of a layer goes before its class, and that before the name
            of a weight. What no key stands for is not shared.

    Raises:
        ValueError: if a number is out of range; at the beginning of `fit()`, if
            the model is not built, or a key stands for no trainable weight.

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

    # Nothing that runs beside the training touches the model.
    async_safe = True

    def __init__(self, num_clusters):
        super().__init__()
        if isinstance(num_clusters, dict):
            self.num_clusters = {
                key: _clusters(value) for key, value in num_clusters.items()
            }
        else:
            self.num_clusters = {"kernel": _clusters(num_clusters)}

    def on_train_begin(self, logs=None):
        model = self.model
        _kernels.check_ready(model, self)
        chosen = _chosen(_kernels.student_of(model), self.num_clusters)
        self._hook = OptimizerHook(self)
        self._hook.held = [
            Clusters(self._hook, weight, number) for weight, number in chosen
        ]
        self._hook.compile()
        self._clustered = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._clustered:
            return
        # Not before: other callbacks may have restored weights.
        for clusters in self._hook.held:
            values = ops.convert_to_numpy(clusters.weight).astype("float32")
            clusters.choose(*cluster(values, clusters.number))
        self._clustered = True

    def on_train_end(self, logs=None):
        self._hook.remove()
        del self._hook


def cluster(weights, number):
    """Put weights into clusters by k-means.

    Args:
        weights: array of float32.
        number: int, the most clusters to make of those that are not zero.

    Returns:
        The index of each weight's cluster, 0 for the zeros, an array of the
        shape of `weights`; and the values of the clusters, of which the first
        is 0.
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
    """Return the centroids of sorted values, those of empty clusters left out.

    In one dimension a cluster is a range of the sorted values, so that a round
    costs a search for its ends and two look-ups in the running sum.
    """
    running = np.concatenate([[0.0], np.cumsum(ordered)])
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
        sums = np.diff(running[ends])
        centroids = np.where(
            counts > 0, sums / np.maximum(counts, 1), centroids
        )


def _chosen(model, num_clusters):
    """Return `(weight, number of clusters)` for all weights to be shared."""
    named = {k: v for k, v in num_clusters.items() if has_layer(model, k)}
    by_layer = values_by_layer(model, named, "num_clusters")
    layers = _kernels.layers_by_weight(model)
    kernel_ids = {id(kernel) for kernel in _kernels.trainable_kernels(model)}
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
            f"`num_clusters` has keys that stand for no trainable weight of "
            f"the model {model.name!r}. Received: {unknown}. Its layers with "
            f"kernels: {names}."
        )
    return chosen


def _class_names(layers):
    """Return the classes of layers, and then those that they derive from."""
    own = [type(layer).__name__ for layer in layers]
    bases = [base for layer in layers for base in type(layer).__mro__]
    return own + [base.__name__ for base in bases]


def _clusters(value):
    number = _arguments.positive_int("num_clusters", value)
    if not 2 <= number <= _MOST:
        raise ValueError(
            f"`num_clusters` must be from 2 to {_MOST}. Received: {value}"
        )
    return number
