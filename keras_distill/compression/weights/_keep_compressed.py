"""`KeepCompressed`: keep zeros and shared values in further training.

The callback finds them in the weights. So it works after a model was saved,
packed, copied, or passed through `quantize_aware`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.compression._models import student_of
from keras_distill.compression.weights import _weight_selection
from keras_distill.compression.weights._kept_values import KeptClusters
from keras_distill.compression.weights._kept_values import KeptZeros
from keras_distill.compression.weights._optimizer_hook import OptimizerHook

# The maximum number of shared values, as in `WeightSharing`.
_MAX_VALUES = 256


class KeepCompressed(keras.callbacks.Callback):
    """Keeps zeros and shared values during a further `fit()`.

    When the first epoch begins, the callback finds zeros and shared values in
    the trainable weights. It keeps them inside each training step:

    - Zeros of kernels stay exactly zero.
    - Equal entries of a kernel (or bias, or other weight) stay equal and are
      trained as one value, as with `WeightSharing`.

    A weight is shared if it has 2 to 256 distinct nonzero values, and fewer
    than it has nonzero entries. A kernel is also shared if this is the case in
    each output channel and each value occurs twice on average: this is a shared
    kernel after a normalization was folded into it. All other weights are
    trained as usual.

    Use it in each `fit()` after those with `MagnitudePruning` and
    `WeightSharing`, also for a model that `quantize_aware` returned. No mask is
    stored, so the model may have been saved and loaded in between. For a
    `Distiller`, the weights of the student are kept. After `fit()`, the
    optimizer is restored.

    Args:
        exclude: a layer whose weights are trained as usual, or a list of
            layers, by name or path (`"logits"`, `"backbone/conv_1"`). The name
            of a nested model stands for all layers in it.

    Raises:
        ValueError: when `fit()` begins, if the model is not built, if a name in
            `exclude` matches no layer, or if `MagnitudePruning` or
            `WeightSharing` is used in the same `fit()`; when the first epoch
            begins, if the model has neither zeros nor shared values.

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

    # The methods that Keras may call from other threads do not use the model.
    async_safe = True

    def __init__(self, exclude: str | Sequence[str] = ()) -> None:
        super().__init__()
        self.exclude = exclude

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _weight_selection.check_ready(self.model, self)
        student = student_of(self.model)
        self._weights = _weight_selection.not_excluded(
            student.trainable_variables, student, self.exclude
        )
        self._hook = OptimizerHook(self)

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._hook.kept:
            return
        # Not in `on_train_begin`: other callbacks may restore weights there.
        model = student_of(self.model)
        is_kernel = {
            id(kernel) for kernel in _weight_selection.trainable_kernels(model)
        }
        for weight in self._weights:
            values = ops.convert_to_numpy(weight)
            if values.itemsize < 4:  # NumPy has no bfloat16.
                values = values.astype("float32")
            if _is_shared(values):
                self._keep_clusters(weight, values)
            elif id(weight) in is_kernel and not np.all(values):
                self._keep_zeros(weight, values)
        if not self._hook.kept:
            self._hook.remove()
            raise ValueError(
                "`KeepCompressed` requires a model with zeros or shared "
                "values. Received: the model "
                f"{model.name!r}, without zeros in trainable kernels and "
                "without shared values in trainable weights. Use "
                "`KeepCompressed` in a `fit()` after that with "
                "`MagnitudePruning` or `WeightSharing`."
            )
        self._hook.compile()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._hook.remove()
        del self._hook, self._weights

    def _keep_clusters(self, weight, values):
        centroids = np.unique(values[values != 0])
        clusters = np.searchsorted(centroids, values) + 1
        clusters[values == 0] = 0
        kept = KeptClusters(self._hook, weight, len(centroids))
        kept.choose(clusters, np.append(np.zeros(1, values.dtype), centroids))
        self._hook.kept.append(kept)

    def _keep_zeros(self, weight, values):
        if not np.any(values):
            warnings.warn(
                f"`KeepCompressed` keeps the whole kernel {weight.path!r} at "
                "zero, so it is not trained. To train it, add its layer to "
                "`exclude`.",
                stacklevel=2,
            )
        kept = KeptZeros(self._hook, weight)
        kept.choose(values == 0)
        self._hook.kept.append(kept)


def _is_shared(values):
    """Return whether a weight has shared values, as the class describes."""
    nonzero = values[values != 0]
    distinct = len(np.unique(nonzero))
    if distinct <= _MAX_VALUES:
        return 2 <= distinct < nonzero.size
    by_channel = np.sort(values.reshape(-1, values.shape[-1]), axis=0)
    new = np.concatenate(
        [by_channel[:1] != 0, np.diff(by_channel, axis=0) != 0]
    )
    counts = np.count_nonzero(new & (by_channel != 0), axis=0)
    return counts.max() <= _MAX_VALUES and 2 * counts.sum() <= nonzero.size
