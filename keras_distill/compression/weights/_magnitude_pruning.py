"""`MagnitudePruning`: set small weights to zero during training.

The callback follows the schedule and chooses the zeros
(`_smallest_weights.py`), between two steps. The optimizer hook keeps them at
zero inside each step (`_kept_values.py`).
"""

import math
import threading
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.compression._models import student_of
from keras_distill.compression.weights import _smallest_weights
from keras_distill.compression.weights import _weight_selection
from keras_distill.compression.weights._kept_values import KeptZeros
from keras_distill.compression.weights._optimizer_hook import OptimizerHook
from keras_distill.compression.weights._sparsity_warnings import (
    AfterAllCallbacks,
)
from keras_distill.compression.weights._sparsity_warnings import (
    warn_of_lost_zeros,
)
from keras_distill.compression.weights._sparsity_warnings import (
    warn_of_missing_zeros,
)

Logs: TypeAlias = dict[str, Any] | None


class MagnitudePruning(keras.callbacks.Callback):
    """Sets a growing share of the smallest weights to zero during `fit()`.

    The share of zeros after `t` steps follows a cubic curve, which rises fast
    at first and slowly at the end:

        s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0))^3

    for `t_0 <= t <= t_1`. Before `t_0`, nothing is pruned. After `t_1`, the
    same weights stay zero. Pruned weights are exactly zero after each batch,
    regardless of the optimizer's momentum and weight decay.

    Steps are batches, counted from epoch 0. So a run that `BackupAndRestore`
    resumes, or that begins with `initial_epoch`, continues the schedule.

    For a `Distiller`, the student is pruned. A `kernel_constraint` is applied
    to the remaining weights. After `fit()`, the optimizer is restored, and no
    mask is stored. To keep the zeros in a further `fit()`, use
    `KeepCompressed`, or this callback again: `MagnitudePruning(0.9,
    initial_sparsity=0.9, end_step=0)` with the same `scope`.

    Sources: Zhu and Gupta 2017, "To prune, or not to prune" (the schedule); Han
    et al. 2015, "Learning both Weights and Connections"; Lee et al. 2021,
    "Layer-adaptive Sparsity for the Magnitude-based Pruning" (LAMP).

    Args:
        final_sparsity: float in [0, 1), the share of zeros at the end, `s_f`.
        end_step: int, the step that reaches `final_sparsity`, `t_1`.
        initial_sparsity: float in [0, 1), the share of zeros at `begin_step`,
            `s_i`.
        begin_step: int, the first step of the schedule, `t_0`.
        frequency: int. The zeros are chosen again after this many steps, if
            the curve removes at least 5 % of the remaining weights by then. So
            there are about `20 * log(1 / (1 - s_f))` choices, for schedules of
            any length. The share is exact at `end_step`.
        scope: `"layer"` prunes the same share of each layer. `"global"` prunes
            the smallest weights of the whole model, and may set a whole layer
            to zero. `"lamp"` prunes the weights with the smallest score
            `w^2 / (sum of the squares of all weights of the layer that are at
            least as large)`. It keeps at least one weight per layer and is the
            best choice at high sparsity.
        exclude: a layer that is not pruned, or a list of layers, by name or
            path (`"logits"`, `"backbone/conv_1"`). The name of a nested model
            stands for all layers in it. Only kernels are pruned, never biases,
            normalizations or embeddings.

    Raises:
        ValueError: if an argument is out of its range; when `fit()` begins, if
            the model is not built or has no trainable kernels, or if a name in
            `exclude` matches no layer.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill.compression import MagnitudePruning

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"),
         keras.layers.Dense(3, name="logits")]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    x = np.random.rand(64, 8).astype("float32")
    y = np.random.randint(0, 3, size=64)
    pruning = MagnitudePruning(0.75, end_step=6, exclude=["logits"])
    model.fit(x, y, epochs=4, callbacks=[pruning], verbose=0)
    assert np.mean(model.layers[0].get_weights()[0] == 0) == 0.75
    ```
    """

    # The methods that Keras may call from other threads do not use the model.
    async_safe = True

    def __init__(
        self,
        final_sparsity: float,
        *,
        end_step: int,
        initial_sparsity: float = 0.0,
        begin_step: int = 0,
        frequency: int = 1,
        scope: str = "layer",
        exclude: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.final_sparsity = _sparsity("final_sparsity", final_sparsity)
        self.initial_sparsity = _sparsity("initial_sparsity", initial_sparsity)
        self.begin_step = _arguments.non_negative_int("begin_step", begin_step)
        self.end_step = _arguments.non_negative_int("end_step", end_step)
        self.frequency = _arguments.positive_int("frequency", frequency)
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "`initial_sparsity` must not be above `final_sparsity`: pruned "
                "weights stay zero. Received: "
                f"initial_sparsity={initial_sparsity}, "
                f"final_sparsity={final_sparsity}"
            )
        if self.end_step < self.begin_step:
            raise ValueError(
                "`end_step` must not be before `begin_step`. Received: "
                f"end_step={end_step}, begin_step={begin_step}"
            )
        if scope not in _smallest_weights.SCOPES:
            raise ValueError(
                f"`scope` must be one of {_smallest_weights.SCOPES}. Received: "
                f"scope={scope!r}"
            )
        self.scope = scope
        self.exclude = exclude
        # These exist during `fit()` only.
        self._hook: Any = None
        self._end: Any = None
        self._lock: Any = None
        self._epoch_step: Any = None

    def sparsity(self, step: int) -> float:
        """Return the share of zeros of the schedule at a step."""
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        length = self.end_step - self.begin_step
        rest = 1 - (step - self.begin_step) / length
        difference = self.initial_sparsity - self.final_sparsity
        return self.final_sparsity + difference * rest**3

    def on_train_begin(self, logs: Logs = None) -> None:
        model = self.model
        _weight_selection.check_ready(model, self)
        student = student_of(model)
        weights = _weight_selection.not_excluded(
            _weight_selection.trainable_kernels(student), student, self.exclude
        )
        if not weights:
            raise ValueError(
                f"The model {student.name!r} has no trainable kernels to "
                f"prune. Received: exclude={self.exclude!r}. Set `trainable` "
                "of a layer with a kernel, or shorten `exclude`."
            )
        self._hook = OptimizerHook(self)
        self._hook.kept = [KeptZeros(self._hook, weight) for weight in weights]
        self._hook.compile()
        self._end = AfterAllCallbacks(self)
        self._epoch_step = None
        self._lock = threading.Lock()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self._epoch_step is None:
            # Not in `on_train_begin`: other callbacks may restore weights.
            self._epoch_step = self._steps_before(epoch)
            if self._epoch_step == 0:
                warn_of_lost_zeros(self, self._kernels())
        self._started = self._ended = 0
        self._choose_at(self._epoch_step)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._started = batch + self._hook.model.steps_per_execution
        self._choose_at(self._epoch_step + batch)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        # Keras calls this from several threads, in any order.
        with self._lock:
            self._ended = max(self._ended, batch + 1)

    def on_test_begin(self, logs: Logs = None) -> None:
        # Validation within `fit()` runs before `on_epoch_end`, when not all
        # batches have reported their end. The length of the epoch is used.
        if self._hook is not None and self.params.get("steps"):
            self._choose_at(self._epoch_step + self._taken(self._started))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._epoch_step += self._taken(self._ended)
        self._choose_at(self._epoch_step)

    def on_train_end(self, logs: Logs = None) -> None:
        self._hook.remove()
        if self._epoch_step is not None:
            kernels, step = self._kernels(), self._epoch_step
            self._end.run(lambda: warn_of_missing_zeros(self, kernels, step))
        self._hook = self._end = self._lock = None

    def _kernels(self):
        # On JAX, reading `self.model` updates its weights from the step.
        _ = self.model
        return [zeros.weight for zeros in self._hook.kept]

    def _steps_before(self, epoch):
        steps = self.params.get("steps")
        if epoch == 0 or steps:
            return epoch * (steps or 0)
        # A resumed run on data of unknown length: the optimizer has counted.
        optimizer = self._hook.optimizer
        accumulated = optimizer.gradient_accumulation_steps or 1
        return int(optimizer.iterations) * accumulated

    def _taken(self, batches):
        """Return the steps taken, which end with the epoch.

        With several steps per execution, the number of batches may be larger.
        """
        return min(batches, self.params.get("steps") or batches)

    def _choose_at(self, step):
        """Choose the zeros again, if the schedule requires it at a step."""
        sparsity = self.sparsity_in_force(step)
        if step < self.begin_step or sparsity == self._hook.chosen:
            return
        self._hook.chosen = sparsity
        weights = [ops.convert_to_numpy(kernel) for kernel in self._kernels()]
        chosen = _smallest_weights.smallest(weights, sparsity, self.scope)
        for zeros, pruned in zip(self._hook.kept, chosen):
            zeros.choose(pruned)

    def sparsity_in_force(self, step: int) -> float:
        """Return the share of zeros of the last choice up to a step.

        It depends only on the step, so a resumed run makes the same choices.
        """
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        passed = step - self.begin_step
        scheduled = self.sparsity(step - passed % self.frequency)
        # The remaining share is rounded up to the initial one times a power of
        # 0.95.
        initial = 1 - self.initial_sparsity
        power = math.floor(math.log((1 - scheduled) / initial) / _SHRINK + 1e-9)
        return 1 - initial * math.exp(_SHRINK * power)


# Each choice removes at least 5 % of the remaining weights.
_SHRINK = math.log1p(-0.05)


def _sparsity(name, value):
    value = _arguments.fraction(name, value)
    if value == 1:
        raise ValueError(
            f"`{name}` must be below 1: at 1, all weights would be zero. "
            f"Received: {name}={value}"
        )
    return value
