"""TeacherHealth: notices a teacher that returns NaN, and says in which batch.

A compiled step can't raise. It counts the rows with a value that is not finite
and lets zeros stand in for them, so that the student is not destroyed; the
count comes back with the logs and is looked at one step later, when it is there
anyway. So watching costs no wait for the device.
"""

import keras
from keras import ops
from keras import tree

LOG = "rows_without_finite_teacher"


class TeacherHealth:
    """Watches the outputs of a teacher through one epoch after another."""

    def __init__(self):
        self.metric = keras.metrics.Sum(name=LOG)
        self._calls = 0
        self._pending = None

    def check(self, outputs):
        """Count rows that are not finite; return outputs that are."""
        for output in tree.flatten(outputs):
            bad = ops.logical_not(ops.isfinite(ops.cast(output, "float32")))
            axes = tuple(range(1, len(output.shape)))
            rows = ops.any(bad, axis=axes) if axes else bad
            self.metric.update_state(ops.cast(rows, "float32"))
        return tree.map_structure(
            lambda o: ops.where(ops.isfinite(o), o, ops.zeros_like(o)), outputs
        )

    def collect(self, logs):
        """Take the count of a finished step out of its logs."""
        self._pending = (self._calls, logs.pop(LOG))
        self._calls += 1

    def settle(self):
        """Raise if the last step met a bad teacher; call it before the next.

        Raises:
            ValueError: with the number of the batch.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        call, rows = pending
        rows = float(ops.convert_to_numpy(rows))
        if rows > 0:
            raise ValueError(
                f"The teacher returned NaN or infinity for {rows:g} rows of "
                f"batch {call} of this epoch (counted from 0). Check the "
                "teacher on that batch, and that its inputs have the range and "
                "preprocessing that it was trained with. The student is "
                "intact: zeros stood in for these rows. "
                "`compile(check_teacher=False)` switches this check off."
            )

    def start_epoch(self):
        """Settle what is pending and count batches from 0 again."""
        self.settle()
        self._calls = 0
