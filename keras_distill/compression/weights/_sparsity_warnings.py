"""What MagnitudePruning says of shares of zeros that were not asked for."""

import math
import warnings

import numpy as np
from keras import ops


def warn_of_lost_zeros(pruning, kernels):
    """Warn if a schedule begins with fewer zeros than the kernels have.

    A kernel of nothing but zeros was initialized so, and is not pruned.
    """
    values = [ops.convert_to_numpy(kernel) for kernel in kernels]
    values = [array for array in values if np.any(array)]
    share, first = _share(values), pruning.sparsity_in_force(0)
    if _is_below(first, share, values):
        warnings.warn(
            f"MagnitudePruning begins with {first:.1%} zeros, and the kernels "
            f"to prune have {share:.1%} by now: more than it holds are trained "
            "again. To keep what an earlier `fit()` has pruned, give it "
            f"`initial_sparsity={math.floor(share * 1000) / 1000}` and "
            "`begin_step=0`; to prune no more, train with `KeepCompressed()` "
            "in its place.",
            stacklevel=2,
        )


def warn_of_missing_zeros(pruning, kernels, step):
    """Warn at the end of `fit()` if zeros of the schedule are missing."""
    values = [ops.convert_to_numpy(kernel) for kernel in kernels]
    share, final = _share(values), pruning.final_sparsity
    if not _is_below(share, final, values):
        return
    reached = pruning.sparsity_in_force(step)
    if _is_below(share, reached, values):
        reason = _put_back(pruning, reached)
    else:
        reason = (
            f"The training ended after {step} steps, and the schedule does at "
            f"`end_step={pruning.end_step}`."
        )
    warnings.warn(
        f"After `fit()` with MagnitudePruning, {share:.1%} of the weights to "
        f"prune are zeros. Expected: `final_sparsity`, {final:.1%}. {reason}",
        stacklevel=2,
    )


class AfterAllCallbacks:
    """Runs a function when every callback of a `fit()` has ended.

    EarlyStopping puts weights back when it ends, before or after the callback
    that wants to know of it. The History that Keras appends ends after all that
    the user gives.

    Args:
        callback: the callback, when `fit()` begins.
    """

    def __init__(self, callback):
        self.function = None
        self.history = getattr(callback.model, "history", None)
        # One object for all callbacks of a `fit()`.
        self.waits = getattr(self.history, "params", None) is callback.params
        if self.waits:
            self.history.on_train_end = self._history_ends

    def run(self, function):
        """Run the function, now if the History has ended or there is none."""
        if self.waits:
            self.function = function
        else:
            function()

    def _history_ends(self, logs=None):
        self.waits = False
        del self.history.on_train_end
        self.history.on_train_end(logs)
        if self.function is not None:
            self.function()


def _put_back(pruning, reached):
    steps = pruning.params.get("steps")
    number = max(math.ceil(pruning.end_step / steps) - 1, 0) if steps else "..."
    return (
        f"The schedule had reached {reached:.1%}, and a callback has put back "
        "weights of an earlier time, as `EarlyStopping(restore_best_weights="
        "True)` does. Let it count from the end of the schedule, with "
        f"`start_from_epoch={number}`; or prune in one `fit()` and choose the "
        "best weights in the next, with `KeepCompressed()` beside it."
    )


def _share(values):
    size = sum(array.size for array in values)
    zeros = sum(array.size - np.count_nonzero(array) for array in values)
    return zeros / max(size, 1)


def _is_below(share, expected, values):
    """Return whether it is by more than one weight of each array."""
    size = sum(array.size for array in values)
    return (expected - share) * size > len(values)
