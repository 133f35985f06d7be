"""MagnitudePruning: small weights become zeros while the model trains.

The schedule and the choice of the zeros (`_smallest_weights.py`) run in the
callback, between two steps. `_held.py` keeps them at zero inside each step.
"""

import math
import threading

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill.compression.weights import _kernels
from keras_distill.compression.weights import _smallest_weights
from keras_distill.compression.weights._held_values import Zeros
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


class MagnitudePruning(keras.callbacks.Callback):
    """Sets the smallest weights to zero, more and more of them, in any `fit()`.

    The share of zeros after `t` steps rises along a cubic curve, fast while
    there is much to remove and slowly at the end:

        s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0))^3

    for `t_0 <= t <= t_1`; before, nothing is pruned, and after, the zeros stay
    where they are. Pruned weights are exactly zero after every batch, whatever
    the optimizer's momentum and weight decay would do with them.

    Steps are batches, counted from epoch 0. So a run that is resumed by
    `BackupAndRestore`, or begun with `initial_epoch`, goes on where it was.

    With a `Distiller`, its student is pruned. A `kernel_constraint` is applied
    to what is left. After `fit()` the optimizer is as it was. The zeros are
    kept by nothing but their values, and further training moves them unless it
    has this callback too: `MagnitudePruning(0.9, initial_sparsity=0.9,
    end_step=0)`, with the same `scope`, holds what is there.

    Sources: Zhu and Gupta 2017, "To prune, or not to prune" (the schedule); Han
    et al. 2015, "Learning both Weights and Connections"; Lee et al. 2021,
    "Layer-adaptive Sparsity for the Magnitude-based Pruning" (LAMP).

    Args:
        final_sparsity: float in [0, 1), the share of zeros in the end, `s_f`.
        end_step: int, the step at which it is reached, `t_1`.
        initial_sparsity: float in [0, 1), the share of zeros at `begin_step`,
            `s_i`.
        begin_step: int, the first step of the schedule, `t_0`.
        frequency: int. Every so many steps the zeros are chosen anew, if the
            curve asks for at least 5 % of the weights that are left by then. So
            few choices are made, `20 * log(1 / (1 - s_f))` of them however
            long the schedule is, and at `end_step` the share is exact.
        scope: `"layer"` prunes the same share of each layer; `"global"` the
            smallest weights of the whole model, and may empty a layer; `"lamp"`
            the least of `w^2 / sum of the squares of the weights of the layer
            that are at least as large`, which keeps one weight per layer at
            least and is the best choice at high sparsity.
        exclude: a layer to spare, or a list of them, by name or path
            (`"logits"`, `"backbone/conv_1"`); a nested model stands for all
            layers in it. Only kernels are pruned, never biases, normalisations
            or embeddings.

    Raises:
        ValueError: if an argument is out of its range; at the beginning of
            `fit()`, if the model is not built, has no trainable kernels, or
            has no layer of a name in `exclude`.

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

    # Nothing that runs beside the training touches the model.
    async_safe = True

    def __init__(
        self,
        final_sparsity,
        *,
        end_step,
        initial_sparsity=0.0,
        begin_step=0,
        frequency=1,
        scope="layer",
        exclude=(),
    ):
        super().__init__()
        self.final_sparsity = _sparsity("final_sparsity", final_sparsity)
        self.initial_sparsity = _sparsity("initial_sparsity", initial_sparsity)
        self.begin_step = _arguments.non_negative_int("begin_step", begin_step)
        self.end_step = _arguments.non_negative_int("end_step", end_step)
        self.frequency = _arguments.positive_int("frequency", frequency)
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "Zeros are never taken back, so `initial_sparsity` must not "
                f"be above `final_sparsity`. Received: {initial_sparsity} and "
                f"{final_sparsity}"
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
        self._hook = None

    def sparsity(self, step):
        """Return the share of zeros that the schedule asks for at a step."""
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        length = self.end_step - self.begin_step
        rest = 1 - (step - self.begin_step) / length
        difference = self.initial_sparsity - self.final_sparsity
        return self.final_sparsity + difference * rest**3

    def on_train_begin(self, logs=None):
        model = self.model
        _kernels.check_ready(model, self)
        student = _kernels.student_of(model)
        weights = _kernels.without(
            _kernels.trainable_kernels(student), student, self.exclude
        )
        if not weights:
            raise ValueError(
                f"The model {student.name!r} has no trainable kernels to "
                f"prune. Received: exclude={self.exclude}"
            )
        self._hook = OptimizerHook(self)
        self._hook.held = [Zeros(self._hook, weight) for weight in weights]
        self._hook.compile()
        self._end = AfterAllCallbacks(self)
        self._epoch_step = self._chosen = None
        self._lock = threading.Lock()

    def on_epoch_begin(self, epoch, logs=None):
        if self._epoch_step is None:
            # Not before: other callbacks may have restored weights.
            self._epoch_step = self._steps_before(epoch)
            if self._epoch_step == 0:
                warn_of_lost_zeros(self, self._kernels())
        self._started = self._ended = 0
        self._choose_at(self._epoch_step)

    def on_train_batch_begin(self, batch, logs=None):
        self._started = batch + self._hook.model.steps_per_execution
        self._choose_at(self._epoch_step + batch)

    def on_train_batch_end(self, batch, logs=None):
        # Keras calls this from several threads, in any order.
        with self._lock:
            self._ended = max(self._ended, batch + 1)

    def on_test_begin(self, logs=None):
        # A validation within `fit()` comes before `on_epoch_end`, at a time
        # when only the length of the epoch says how many batches have ended.
        if self._hook is not None and self.params.get("steps"):
            self._choose_at(self._epoch_step + self._taken(self._started))

    def on_epoch_end(self, epoch, logs=None):
        self._epoch_step += self._taken(self._ended)
        self._choose_at(self._epoch_step)

    def on_train_end(self, logs=None):
        self._hook.remove()
        if self._epoch_step is not None:
            kernels, step = self._kernels(), self._epoch_step
            self._end.run(lambda: warn_of_missing_zeros(self, kernels, step))
        self._hook = self._end = self._lock = None

    def _kernels(self):
        # On JAX this puts the weights of the running step into the model.
        _ = self.model
        return [zeros.weight for zeros in self._hook.held]

    def _steps_before(self, epoch):
        steps = self.params.get("steps")
        if epoch == 0 or steps:
            return epoch * (steps or 0)
        # A stream whose length is not known, resumed: the optimizer counted.
        optimizer = self._hook.optimizer
        accumulated = optimizer.gradient_accumulation_steps or 1
        return int(optimizer.iterations) * accumulated

    def _taken(self, batches):
        """Several steps per execution end at the end of the epoch."""
        return min(batches, self.params.get("steps") or batches)

    def _choose_at(self, step):
        """Choose the zeros anew, if the schedule has a choice due by a step."""
        sparsity = self.sparsity_in_force(step)
        if step < self.begin_step or sparsity == self._chosen:
            return
        self._chosen = sparsity
        weights = [ops.convert_to_numpy(kernel) for kernel in self._kernels()]
        chosen = _smallest_weights.least(weights, sparsity, self.scope)
        for zeros, pruned in zip(self._hook.held, chosen):
            zeros.choose(pruned)

    def sparsity_in_force(self, step):
        """Return the share of zeros of the last choice up to a step.

        It depends on nothing but the step, so a resumed run has the same.
        """
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        passed = step - self.begin_step
        asked = self.sparsity(step - passed % self.frequency)
        # The share that is left, in powers of 0.95 of what it was at first.
        first = 1 - self.initial_sparsity
        power = math.floor(math.log((1 - asked) / first) / _SHRINK + 1e-9)
        return 1 - first * math.exp(_SHRINK * power)


# The least share of the weights that are left, by which a choice makes fewer.
_SHRINK = math.log1p(-0.05)


def _sparsity(name, value):
    value = _arguments.fraction(name, value)
    if value == 1:
        raise ValueError(
            f"`{name}` must be below 1: a network of zeros is left otherwise. "
            f"Received: {name}={value}"
        )
    return value
