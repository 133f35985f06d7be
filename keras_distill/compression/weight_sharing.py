"""WeightSharing: few distinct values per layer, trained on as such.

The clusters are made once, by the callback. That a cluster moves as one weight
is seen to inside each training step (`optimizer_hook.py`), in two places: its
members get the gradient of the cluster, and what the optimizer makes of them is
averaged. The second is for optimizers that remember the time before (momentum
of an earlier `fit()`), and makes members equal to the bit.
"""

import keras
import numpy as np
from keras import ops

from keras_distill import _arguments
from keras_distill.compression import kernels
from keras_distill.compression.optimizer_hook import OptimizerHook

# As many values as a byte has; the zeros make one more.
_MOST = 256
_ZERO = 0  # the index of the cluster of zeros, which never moves


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
    was, and nothing holds the clusters together in further training.

    Source: Han, Mao and Dally 2016, "Deep Compression".

    Args:
        num_clusters: int from 2 to 256, for the kernels of every layer; or a
            dict of such, whose keys are the names, paths or class names of
            layers, whose kernels are meant (`{"Conv2D": 32, "logits": 8}`), or
            names of weights (`{"kernel": 8, "bias": 16}`). The name of a layer
            goes before its class, and that before the name of a weight. What no
            key stands for is not shared.

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
        kernels.check_ready(model, self)
        self._shared = _chosen(kernels.student_of(model), self.num_clusters)
        self._hook = OptimizerHook(self, self._sum_gradients, self._average)
        self._members = [
            self._hook.add_state(weight, "cluster", "int32")
            for weight, _ in self._shared
        ]
        self._hook.compile()
        self._clustered = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._clustered:
            return
        # Not before: other callbacks may have restored weights.
        for (weight, number), members in zip(self._shared, self._members):
            values = ops.convert_to_numpy(weight)
            clusters, centroids = cluster(values.astype("float32"), number)
            weight.assign(centroids[clusters])
            members.assign(clusters.astype("int32"))
        self._clustered = True

    def on_train_end(self, logs=None):
        # A run that was complete when it was resumed has no epoch: its weights
        # stay what was restored.
        if self._clustered:
            self._make_equal()
        self._hook.remove()
        del self._hook, self._shared, self._members

    def _make_equal(self):
        # An optimizer with `use_ema` has replaced the weights by averages.
        for (weight, _), members in zip(self._shared, self._members):
            values = ops.convert_to_numpy(weight)
            clusters = ops.convert_to_numpy(members)
            weight.assign(_made_equal(values, clusters))

    def _sum_gradients(self, gradients, variables):
        indices = {id(variable): i for i, variable in enumerate(variables)}
        # On PyTorch the weights change in place.
        self._before = [ops.copy(weight) for weight, _ in self._shared]
        for (weight, number), members in zip(self._shared, self._members):
            index = indices[id(weight)]
            if gradients[index] is not None:
                clusters = ops.convert_to_tensor(members)
                sums = _sums(gradients[index], clusters, number)
                gradients[index] = _spread(sums, clusters, weight.dtype)
        return gradients

    def _average(self):
        for (weight, number), members, before in zip(
            self._shared, self._members, self._before
        ):
            clusters = ops.convert_to_tensor(members)
            steps = _sums(ops.subtract(weight, before), clusters, number)
            counts = _sums(ops.ones(weight.shape), clusters, number)
            step = _spread(
                steps / ops.maximum(counts, 1), clusters, weight.dtype
            )
            # Members were equal before, and make equal steps.
            weight.assign(before + step)
        self._before = None


def _sums(values, clusters, number):
    """Return the sum over each cluster, `(number + 1,)`, in float32."""
    return ops.segment_sum(
        ops.reshape(ops.cast(values, "float32"), (-1,)),
        ops.reshape(clusters, (-1,)),
        num_segments=number + 1,
    )


def _spread(values, clusters, dtype):
    """Return for each weight the value of its cluster; 0 for the zeros."""
    spread = ops.take(values, clusters, axis=0)
    return ops.cast(ops.where(clusters == _ZERO, 0.0, spread), dtype)


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
    clusters[weights == 0] = _ZERO
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


def _made_equal(values, clusters):
    flat, index = values.ravel().astype("float64"), clusters.ravel()
    counts = np.bincount(index)
    means = np.bincount(index, flat) / np.maximum(counts, 1)
    # Where members are equal already, no mean of them can be more exact.
    first = np.zeros(len(counts))
    first[index[::-1]] = flat[::-1]
    unequal = np.bincount(index, flat != first[index]) > 0
    equal = np.where(unequal, means, first)
    equal[_ZERO] = 0
    return equal[clusters].astype(values.dtype)


def _chosen(model, num_clusters):
    """Return `(weight, number of clusters)` for all weights to be shared."""
    layers = kernels.layers_by_weight(model)
    kernel_ids = {id(kernel) for kernel in kernels.trainable_kernels(model)}
    chosen, used = [], set()
    for weight in model.trainable_variables:
        keys = [weight.path]
        if id(weight) in kernel_ids:
            inner_first = layers[id(weight)][::-1]
            keys += [
                k for layer in inner_first for k in (layer.path, layer.name)
            ]
            keys += [type(layer).__name__ for layer in inner_first]
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


def _clusters(value):
    number = _arguments.positive_int("num_clusters", value)
    if not 2 <= number <= _MOST:
        raise ValueError(
            f"`num_clusters` must be from 2 to {_MOST}. Received: {value}"
        )
    return number
