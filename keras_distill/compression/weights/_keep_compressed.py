"""KeepCompressed: zeros and shared values outlive further training.

What is to be kept is read from the weights themselves, so that it comes along
wherever they go: through files, `pack`, copies and `quantize_aware`.
"""

import warnings

import keras
import numpy as np
from keras import ops

from keras_distill.compression.weights import _kernels
from keras_distill.compression.weights._held_values import Clusters
from keras_distill.compression.weights._held_values import Zeros
from keras_distill.compression.weights._optimizer_hook import OptimizerHook

# As many values as `WeightSharing` makes.
_MOST = 256


class KeepCompressed(keras.callbacks.Callback):
    """Keeps what pruning and weight sharing have made, in any further `fit()`.

    At the first step of `fit()` it looks at the trainable weights, and from
    then on holds, inside each training step,

    - zeros of kernels: they stay exactly zero,
    - shared values: weights of one kernel (or bias, or other weight) that are
      equal stay equal, and move as one, as under `WeightSharing`.

    A weight counts as shared if it has from 2 to 256 different values that are
    not zero, and fewer than it has entries that are not zero. So does a kernel
    of which this is true in each output channel, where a value stands twice on
    average: what is left of a shared kernel into which a normalization was
    folded. The other weights are trained freely.

    Give it to every `fit()` after those of `MagnitudePruning` and
    `WeightSharing`, also of what `quantize_aware` returned. Nothing has to be
    remembered between them, so the model may have been saved and loaded. Of a
    `Distiller`, the student is held. After `fit()` the optimizer is as it was.

    Args:
        exclude: a layer to train freely, or a list of them, by name or path
            (`"logits"`, `"backbone/conv_1"`); a nested model stands for all
            layers in it.

    Raises:
        ValueError: at the beginning of `fit()`, if the model is not built, has
            no layer of a name in `exclude`, or is held by another callback of
            these; at the first step, if it has neither zeros nor shared values.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill.compression import KeepCompressed, MagnitudePruning

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"),
         keras.layers.Dense(3)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    x = np.random.rand(64, 8).astype("float32")
    y = np.random.randint(0, 3, size=64)
    model.fit(x, y, callbacks=[MagnitudePruning(0.75, end_step=1)], verbose=0)
    model.fit(x, y, callbacks=[KeepCompressed()], verbose=0)
    assert np.mean(model.layers[0].get_weights()[0] == 0) == 0.75
    ```
    """

    # Nothing that runs beside the training touches the model.
    async_safe = True

    def __init__(self, exclude=()):
        super().__init__()
        self.exclude = exclude

    def on_train_begin(self, logs=None):
        _kernels.check_ready(self.model, self)
        student = _kernels.student_of(self.model)
        self._weights = _kernels.without(
            student.trainable_variables, student, self.exclude
        )
        self._hook = OptimizerHook(self)

    def on_epoch_begin(self, epoch, logs=None):
        if self._hook.held:
            return
        # Not before: other callbacks may have restored weights.
        model = _kernels.student_of(self.model)
        is_kernel = {id(kernel) for kernel in _kernels.trainable_kernels(model)}
        for weight in self._weights:
            values = ops.convert_to_numpy(weight)
            if values.itemsize < 4:  # NumPy itself knows no bfloat16.
                values = values.astype("float32")
            if _is_shared(values):
                self._hold_clusters(weight, values)
            elif id(weight) in is_kernel and not np.all(values):
                self._hold_zeros(weight, values)
        if not self._hook.held:
            self._hook.remove()
            raise ValueError(
                "KeepCompressed has nothing to keep: no trainable kernel of "
                f"{model.name!r} has zeros, and no trainable weight has shared "
                "values. "
                "Give it to the `fit()` after that of `MagnitudePruning` or "
                "`WeightSharing`."
            )
        self._hook.compile()

    def on_train_end(self, logs=None):
        self._hook.remove()
        del self._hook, self._weights

    def _hold_clusters(self, weight, values):
        centroids = np.unique(values[values != 0])
        clusters = np.searchsorted(centroids, values) + 1
        clusters[values == 0] = 0
        held = Clusters(self._hook, weight, len(centroids))
        held.choose(clusters, np.append(np.zeros(1, values.dtype), centroids))
        self._hook.held.append(held)

    def _hold_zeros(self, weight, values):
        if not np.any(values):
            warnings.warn(
                f"KeepCompressed holds the kernel {weight.path!r} at zero, all "
                "of it, so that it does not learn. Name it in `exclude` if it "
                "is to be trained.",
                stacklevel=2,
            )
        held = Zeros(self._hook, weight)
        held.choose(values == 0)
        self._hook.held.append(held)


def _is_shared(values):
    """Return whether equal values of a weight are so on purpose."""
    left = values[values != 0]
    distinct = len(np.unique(left))
    if distinct <= _MOST:
        return 2 <= distinct < left.size
    by_channel = np.sort(values.reshape(-1, values.shape[-1]), axis=0)
    new = np.concatenate(
        [by_channel[:1] != 0, np.diff(by_channel, axis=0) != 0]
    )
    counts = np.count_nonzero(new & (by_channel != 0), axis=0)
    return counts.max() <= _MOST and 2 * counts.sum() <= left.size
