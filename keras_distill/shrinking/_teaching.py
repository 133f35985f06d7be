"""Training a candidate under the teacher."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from keras_distill.distiller import Distiller
from keras_distill.shrinking._run import Stage

# The share of the epochs in which an int8 network is trained with rounding, and
# its learning rate beside that of the epochs before.
_SHARE_ROUNDING = 1 / 4
_LATE_RATE = 0.1
_SHARE_WARM_UP = 0.05


class Teaching:
    """Trains students alike: one teacher, one loss, one schedule.

    Args:
        teacher: as in `Distiller`.
        train: as in `shrink`.
        augment: as in `Distiller`.
        loss: as in `Distiller.compile`.
        learning_rate: the highest learning rate.
        epochs: the number of epochs of a candidate.
        batch_size: the batch size of arrays.
        verbose: as in `fit()`.
    """

    def __init__(
        self,
        teacher: Any,
        train: Any,
        augment: Any,
        loss: Any,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        verbose: Any,
    ) -> None:
        self.teacher, self.augment, self.loss = teacher, augment, loss
        self.data = train if isinstance(train, tuple) else (train,)
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.rounding_epochs = math.ceil(epochs * _SHARE_ROUNDING)
        self.verbose = verbose
        self.steps, self.options = _steps(self.data, batch_size)

    def check(self, student: keras.Model) -> None:
        """Raise an error if a student cannot be trained as it is planned."""
        self._distiller(student, 1, False)

    def fit(
        self,
        student: keras.Model,
        epochs: int,
        stage: Stage,
        title: str,
        is_late: bool = False,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        """Train a student in place, from where the stage was stopped.

        Args:
            student: a built model.
            epochs: the number of epochs; for 0, nothing is done.
            stage: where the state is kept.
            title: what is printed before the progress.
            is_late: whether the student is trained already, so that its
                learning rate is small.
            callbacks: callbacks of `fit()`.
        """
        if not epochs:
            return
        if self.verbose:
            print(f"{title}: {student.count_params():,} parameters")
        self._distiller(student, epochs, is_late).fit(
            *self.data,
            epochs=epochs,
            callbacks=[*callbacks, stage.resume()],
            verbose=self.verbose,
            **self.options,
        )

    def _distiller(self, student, epochs, is_late):
        """Return a compiled Distiller for a number of epochs.

        The learning rate rises for a twentieth of the steps, and falls to zero
        as half a cosine.
        """
        distiller = Distiller(
            student=student, teacher=self.teacher, augment=self.augment
        )
        steps = epochs * self.steps
        warm_up = 0 if is_late else math.ceil(steps * _SHARE_WARM_UP)
        rate = self.learning_rate * (_LATE_RATE if is_late else 1.0)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else rate,
            max(steps - warm_up, 1),
            warmup_target=rate if warm_up else None,
            warmup_steps=warm_up,
        )
        distiller.compile(keras.optimizers.Adam(schedule), loss=self.loss)
        return distiller


def _steps(data, batch_size):
    """Return the steps of an epoch, and the options of `fit()` for them.

    Raises:
        ValueError: if the number of steps is unknown.
    """
    arrays = tree.flatten(data[0])
    if all(hasattr(array, "shape") for array in arrays):
        count = math.ceil(len(arrays[0]) / batch_size)
        return count, {"batch_size": batch_size}
    try:
        return len(data[0]), {}
    except TypeError as error:
        raise ValueError(
            "`train` must be arrays, or a dataset whose number of batches is "
            f"known. Received: {data[0]!r}. For an endless dataset, use "
            "`dataset.take(steps)`."
        ) from error
