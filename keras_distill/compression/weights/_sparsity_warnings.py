"""Warnings of `MagnitudePruning` about an unexpected share of zeros."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.compression.weights._smallest_weights import share_of_zeros


def warn_of_lost_zeros(pruning: Any, kernels: list[keras.Variable]) -> None:
    """Warn if a schedule begins with fewer zeros than the kernels have.

    Kernels that are zero everywhere do not count: they were initialized with
    zeros, not pruned.
    """
    values = [ops.convert_to_numpy(kernel) for kernel in kernels]
    values = [array for array in values if np.any(array)]
    share, first = share_of_zeros(values), pruning.sparsity_in_force(0)
    if _is_below(first, share, values):
        warnings.warn(
            f"`MagnitudePruning` begins with {first:.1%} zeros, but the "
            f"kernels already have {share:.1%} zeros. The other zeros are "
            "trained again. To keep them, use "
            f"`initial_sparsity={math.floor(share * 1000) / 1000}` and "
            "`begin_step=0`. If you do not want to prune further, use "
            "`KeepCompressed()` instead.",
            stacklevel=2,
        )


def warn_of_missing_zeros(
    pruning: Any, kernels: list[keras.Variable], step: int
) -> None:
    """Warn at the end of `fit()` if zeros of the schedule are missing."""
    values = [ops.convert_to_numpy(kernel) for kernel in kernels]
    share, final = share_of_zeros(values), pruning.final_sparsity
    if not _is_below(share, final, values):
        return
    reached = pruning.sparsity_in_force(step)
    if _is_below(share, reached, values):
        reason = _restored_weights(pruning, reached)
    else:
        reason = (
            f"The training ended after {step} steps, before the schedule did "
            f"at `end_step={pruning.end_step}`. Train longer, or use a smaller "
            "`end_step`."
        )
    warnings.warn(
        f"After `fit()` with `MagnitudePruning`, {share:.1%} of the kernel "
        f"weights are zero. Expected: `final_sparsity`, {final:.1%}. {reason}",
        stacklevel=2,
    )


class AfterAllCallbacks:
    """Runs a function after `on_train_end` of all callbacks of a `fit()`.

    EarlyStopping restores weights in its `on_train_end`, which may run before
    or after that of a given callback. Keras appends a History to the user's
    callbacks, so its `on_train_end` runs last.

    Args:
        callback: a callback, when `fit()` begins.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self.function: Callable[[], None] | None = None
        self.history: Any = getattr(callback.model, "history", None)
        # One object for all callbacks of a `fit()`.
        self.waits = getattr(self.history, "params", None) is callback.params
        if self.history is not None and self.waits:
            self.history.on_train_end = self._history_ends

    def run(self, function: Callable[[], None]) -> None:
        """Run the function later, or now if there is no running History."""
        if self.waits:
            self.function = function
        else:
            function()

    def _history_ends(self, logs: dict[str, Any] | None = None) -> None:
        self.waits = False
        del self.history.on_train_end
        self.history.on_train_end(logs)
        if self.function is not None:
            self.function()


def _restored_weights(pruning, reached):
    """Return the sentences on a callback that restored earlier weights."""
    steps = pruning.params.get("steps")
    number = max(math.ceil(pruning.end_step / steps) - 1, 0) if steps else "..."
    return (
        f"The schedule had reached {reached:.1%}, but a callback restored "
        "weights from an earlier step, as `EarlyStopping(restore_best_weights="
        "True)` does. Start `EarlyStopping` after the schedule, with "
        f"`start_from_epoch={number}`. Or prune in one `fit()`, and select the "
        "best weights in the next one, together with `KeepCompressed()`."
    )


def _is_below(share, expected, values):
    """Return whether a share is below the expected one.

    The tolerance is one weight per array, for rounding.
    """
    size = sum(array.size for array in values)
    return (expected - share) * size > len(values)
