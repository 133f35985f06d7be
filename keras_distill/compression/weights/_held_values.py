"""What callbacks hold inside each training step: zeros and shared values.

Both are told of the weights' moving averages too, which an optimizer with
`use_ema` puts in their place: at the end of `fit()`, or for each validation.
"""

from keras import ops

ZERO = 0  # the index of the cluster of zeros, which never moves


class Zeros:
    """The zeros of a kernel.

    Args:
        hook: the `OptimizerHook` that calls `hold` in each step.
        weight: the kernel.
    """

    def __init__(self, hook, weight):
        self.weight = weight
        # 1 for a zero to hold: a bool would be cast in every step.
        self.pruned = hook.add_state(weight, "pruned", weight.dtype)
        self.averages = hook.averages_of(weight)

    def choose(self, pruned):
        """Hold those that are True in an array."""
        self.pruned.assign(pruned)
        self.hold()

    def with_sum(self, gradient):
        return gradient

    def hold(self):
        weight = self._without(self.weight)
        if self.weight.constraint is not None:
            # Keras has applied it to pruned weights that had moved.
            weight = self._without(self.weight.constraint(weight))
        self.weight.assign(weight)
        for average in self.averages:
            average.assign(self._without(average))

    def _without(self, weight):
        # Neither `w * kept`, which makes zeros with a sign, nor `where`, which
        # takes PyTorch four times as long. An infinite weight becomes NaN.
        weight = ops.convert_to_tensor(weight)
        return weight - weight * ops.convert_to_tensor(self.pruned)


class Clusters:
    """The clusters of a weight, of which each moves as one weight.

    In two places: its members get the gradient of the cluster, and what the
    optimizer makes of them is averaged. The second is for optimizers that
    remember the time before (momentum of an earlier `fit()`), and makes members
    equal to the bit.

    Args:
        hook: the `OptimizerHook` that calls `with_sum` and `hold` in each step.
        weight: the weight.
        number: int, the most clusters beside the one of zeros.
    """

    def __init__(self, hook, weight, number):
        self.weight, self.number = weight, number
        self.members = hook.add_state(weight, "cluster", "int32")
        self.averages = hook.averages_of(weight)

    def choose(self, clusters, centroids):
        """Put the weight into clusters.

        Args:
            clusters: array of the weight's shape, an index for each.
            centroids: the values of the clusters, of which the first is 0.
        """
        self.weight.assign(centroids[clusters])
        self.members.assign(clusters.astype("int32"))
        for average in self.averages:
            average.assign(self._mean(average))

    def with_sum(self, gradient):
        """Return what the optimizer is to take for the gradient."""
        # On PyTorch the weights change in place.
        self._before = ops.copy(self.weight)
        return None if gradient is None else self._spread(self._sums(gradient))

    def hold(self):
        # Members were equal before, and make equal steps.
        step = self._mean(ops.subtract(self.weight, self._before))
        self.weight.assign(self._before + step)
        self._before = None
        for average in self.averages:
            average.assign(self._mean(average))

    def _mean(self, values):
        """Return for each weight the mean of its cluster; 0 for the zeros."""
        counts = self._sums(ops.ones(self.weight.shape))
        return self._spread(self._sums(values) / ops.maximum(counts, 1))

    def _sums(self, values):
        """Return the sum over each cluster, `(number + 1,)`, in float32."""
        return ops.segment_sum(
            ops.reshape(ops.cast(values, "float32"), (-1,)),
            ops.reshape(ops.convert_to_tensor(self.members), (-1,)),
            num_segments=self.number + 1,
        )

    def _spread(self, values):
        clusters = ops.convert_to_tensor(self.members)
        spread = ops.take(values, clusters, axis=0)
        spread = ops.where(clusters == ZERO, 0.0, spread)
        return ops.cast(spread, self.weight.dtype)
