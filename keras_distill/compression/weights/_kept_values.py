"""Zeros and shared values that stay the same in each training step.

An `OptimizerHook` calls `before_step` and `after_step` around each step of the
optimizer. The moving averages of an optimizer with `use_ema` get the same zeros
and shared values, because they replace the weights at the end of `fit()`, or
for each validation.
"""

import keras
import numpy as np
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.compression.weights._optimizer_hook import OptimizerHook

ZERO = 0  # the index of the cluster of zeros, which never moves


class KeptZeros:
    """Zeros of a kernel that stay zero.

    Args:
        hook: the `OptimizerHook` that calls this object in each step.
        weight: the kernel.
    """

    def __init__(self, hook: OptimizerHook, weight: keras.Variable) -> None:
        self.weight = weight
        # 1 for a weight to keep at zero. A bool would be cast in each step.
        self.pruned = hook.add_state(weight, "pruned", weight.dtype)
        self.averages = hook.averages_of(weight)

    def choose(self, pruned: np.ndarray) -> None:
        """Set weights to zero from now on, where a bool array is True."""
        self.pruned.assign(pruned)
        self.after_step(None)

    def before_step(self, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    def after_step(self, before: None) -> None:
        weight = self._with_zeros(self.weight)
        if self.weight.constraint is not None:
            # Keras has applied the constraint before the zeros were restored.
            weight = self._with_zeros(self.weight.constraint(weight))
        self.weight.assign(weight)
        for average in self.averages:
            average.assign(self._with_zeros(average))

    def _with_zeros(self, weight):
        # `weight * kept` would make negative zeros, and `where` is four times
        # slower on PyTorch. With this formula, an infinite weight becomes NaN.
        weight = ops.convert_to_tensor(weight)
        return weight - weight * ops.convert_to_tensor(self.pruned)


class KeptClusters:
    """Clusters of a weight. The members of a cluster stay equal.

    This takes two steps. Before the optimizer's step, each member gets the
    gradient of its cluster, the sum over its members. After the step, the
    changes of the members are averaged. The second step is for optimizers with
    a state from before (momentum of an earlier `fit()`), and makes the members
    exactly equal.

    Args:
        hook: the `OptimizerHook` that calls this object in each step.
        weight: the weight.
        number: int, the maximum number of clusters, without that of the zeros.
    """

    def __init__(
        self, hook: OptimizerHook, weight: keras.Variable, number: int
    ) -> None:
        self.weight, self.number = weight, number
        self.members = hook.add_state(weight, "cluster", "int32")
        self.averages = hook.averages_of(weight)

    def choose(self, clusters: np.ndarray, centroids: np.ndarray) -> None:
        """Set the clusters and their values.

        Args:
            clusters: array of the weight's shape, the cluster of each entry.
            centroids: array of the values of the clusters. The first is 0.
        """
        self.weight.assign(centroids[clusters])
        self.members.assign(clusters.astype("int32"))
        for average in self.averages:
            average.assign(self._mean(average))

    def before_step(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        # A copy, because weights change in place on PyTorch.
        before = ops.copy(self.weight)
        if gradient is not None:
            gradient = self._spread(self._sums(gradient))
        return gradient, before

    def after_step(self, before: Tensor) -> None:
        # Members were equal before, so equal changes keep them equal.
        change = self._mean(ops.subtract(self.weight, before))
        self.weight.assign(before + change)
        for average in self.averages:
            average.assign(self._mean(average))

    def _mean(self, values):
        """Return the mean of each cluster at its members; 0 for the zeros."""
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
        """Return the value of its cluster for each entry of the weight."""
        clusters = ops.convert_to_tensor(self.members)
        spread = ops.take(values, clusters, axis=0)
        spread = ops.where(clusters == ZERO, 0.0, spread)
        return ops.cast(spread, self.weight.dtype)
