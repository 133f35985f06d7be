"""CombinedLoss: sums and multiples of losses, which are losses again."""

import math
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _label_loss
from keras_distill.losses._distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class CombinedLoss(DistillationLoss):
    """A weighted sum of losses on one output.

    Created by `+` and `*`: `FunctionMatching(2.0) + 0.5 * DIST(label_weight=0)`

        loss = sum_i weights[i] * losses[i]

    Each loss keeps its own reduction and dtype. A loss that is not a
    `DistillationLoss` compares with the labels. In the logs, the parts of each
    loss are prefixed by its name: `function_matching_soft_loss`,
    `dist_inter_loss`.

    Args:
        losses: list of Keras losses.
        weights: list with a float of at least 0, or a schedule, for each loss.
        name: name of the loss.

    Call arguments:
        y_true: as for `DistillationLoss`.
        y_pred: the student's outputs.
        sample_weight: optional weights, applied to each of the losses.

    Raises:
        ValueError: if a weight is negative, or if the numbers of weights and
            losses differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import DIST, FunctionMatching

    loss = FunctionMatching(temperature=2.0) + 0.5 * DIST(label_weight=0.0)
    teacher = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    print(float(loss(teacher, teacher + 1.0)))  # 0.0
    ```
    """

    # Its schedules are in lists, and in its losses: see `at`.
    controls = ()

    def __init__(
        self,
        losses: Sequence[keras.losses.Loss],
        weights: Sequence[float | Schedule],
        *,
        name: str = "combined_loss",
    ) -> None:
        super().__init__(name=name)
        self.losses = list(losses)
        if not self.losses or len(weights) != len(self.losses):
            raise ValueError(
                "`weights` must have one weight per loss. Received: "
                f"{len(weights)} weights for {len(self.losses)} losses"
            )
        self.weights = [
            _schedules.number_or_schedule(
                "weight", weight, _arguments.non_negative_float
            )
            for weight in weights
        ]

    def members(self) -> list[tuple[tuple[Any, ...], keras.losses.Loss]]:
        """Return `(weights, loss)` for each loss, with nested sums expanded.

        The weight of a loss is the product of its `weights`. Losses of weight 0
        are left out.
        """
        found = []
        for weight, loss in zip(self.weights, self.losses):
            if isinstance(loss, CombinedLoss):
                found += [((weight, *w), inner) for w, inner in loss.members()]
            elif not _schedules.is_zero(weight):
                found.append(((weight,), loss))
        return found

    @property
    def has_schedules(self) -> bool:
        return any(
            any(map(_schedules.is_schedule, weights))
            or getattr(loss, "has_schedules", False)
            for weights, loss in self.members()
        )

    @property
    def uses_labels(self) -> bool:
        return any(
            not isinstance(loss, DistillationLoss) or loss.uses_labels
            for _, loss in self.members()
        )

    @property
    def uses_teacher(self) -> bool:
        return any(
            isinstance(loss, DistillationLoss) and loss.uses_teacher
            for _, loss in self.members()
        )

    def at(self, step: Tensor) -> Self:
        evaluated = _schedules.shallow_copy(self)
        evaluated.weights = [_schedules.value_at(w, step) for w in self.weights]
        evaluated.losses = [
            loss.at(step) if isinstance(loss, DistillationLoss) else loss
            for loss in self.losses
        ]
        return evaluated

    def scheduled_values(self, step: Tensor) -> dict[str, Tensor]:
        values = {}
        for weights, loss in self.members():
            if any(map(_schedules.is_schedule, weights)):
                values[f"{loss.name}_weight"] = math.prod(
                    _schedules.value_at(weight, step) for weight in weights
                )
            if isinstance(loss, DistillationLoss):
                for name, value in loss.scheduled_values(step).items():
                    values[f"{loss.name}_{name}"] = value
        return values

    def __call__(
        self,
        y_true: Tensors,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        if self.has_schedules:
            return super().__call__(y_true, y_pred, sample_weight)
        return sum(
            math.prod(weights)
            * loss(target_of(loss, y_true), y_pred, sample_weight)
            for weights, loss in self.members()
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "losses": [_label_loss.serialize(loss) for loss in self.losses],
            "weights": [
                _schedules.serialize(weight) for weight in self.weights
            ],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(
            [_label_loss.deserialize(loss) for loss in config["losses"]],
            [_schedules.deserialize(weight) for weight in config["weights"]],
            name=config["name"],
        )


def target_of(loss: keras.losses.Loss, y_true: Tensors) -> Tensors:
    """Return the `y_true` of a loss: all targets, or the labels alone.

    Args:
        loss: a `DistillationLoss`, or a Keras loss for the labels.
        y_true: as for `DistillationLoss`.

    Raises:
        ValueError: if the loss requires labels and there are none.
    """
    if isinstance(loss, DistillationLoss):
        return y_true
    if not isinstance(y_true, dict) or y_true.get("labels") is None:
        raise ValueError(
            f"The loss {loss.name!r} compares with labels, and the data "
            "has none. Pass `(x, y)`, or match the teacher with "
            "`FunctionMatching()` or another `DistillationLoss`."
        )
    return y_true["labels"]
