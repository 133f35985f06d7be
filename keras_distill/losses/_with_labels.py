"""WithLabels: the base class of losses that also compare with the labels."""

from collections.abc import Callable
from typing import Any
from typing import Self

import keras

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill._schedules import Schedule
from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.losses import _divergence
from keras_distill.losses import _label_loss as label_losses
from keras_distill.losses._distillation_loss import DistillationLoss
from keras_distill.losses._distillation_loss import Parts


class WithLabels(DistillationLoss):
    """Base class of weighted sums of terms, one of which compares with labels.

    Args:
        label_loss: a Keras loss for the labels, its name, a function, or `None`
            for the default of the class. A loss given by name gets the
            `from_logits` of this loss.
        temperature: as in `DistillationLoss`.
        from_logits: as in `DistillationLoss`.
        reduction: as in `DistillationLoss`.
        name: as in `DistillationLoss`.
        dtype: as in `DistillationLoss`.
    """

    fixed: tuple[str, ...] = ("label_loss",)

    def __init__(
        self,
        label_loss: str | keras.losses.Loss | Callable | None,
        temperature: float | Schedule,
        from_logits: bool,
        reduction: str | None,
        name: str | None,
        dtype: str | None,
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.label_loss = label_loss
        self._compare = self.resolved_label_loss()

    def resolved_label_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return `(labels, student) -> values`, or `None` for the default."""
        if self.label_loss is None:
            return None
        return label_losses.resolve(self.label_loss, self.from_logits)

    def all_parts(self) -> Parts:
        """Return the terms as `parts()` does, including those of weight 0."""
        raise NotImplementedError

    def missing_labels_message(self) -> str:
        """Return the error message for data without labels."""
        raise NotImplementedError

    @property
    def uses_labels(self) -> bool:
        return "label_loss" in self.parts()

    @property
    def uses_teacher(self) -> bool:
        return set(self.parts()) != {"label_loss"}

    def parts(self) -> Parts:
        # Terms of weight 0 are not computed. Without a weight on the labels, no
        # labels are required; with a weight on the labels alone, a teacher that
        # returns NaN does no harm. Terms with a schedule are always computed.
        return {
            name: part
            for name, part in self.all_parts().items()
            if not _schedules.is_zero(part[0])
        }

    def call(self, y_true: Tensors, y_pred: Tensor) -> Tensor:
        return sum(
            weight * part(y_true, y_pred)
            for weight, part in self.parts().values()
        )

    def labels(self, y_true: Tensors) -> Tensor:
        """Return the labels.

        Raises:
            ValueError: if there are none.
        """
        if not isinstance(y_true, dict) or y_true.get("labels") is None:
            raise ValueError(self.missing_labels_message())
        return y_true["labels"]

    def labels_for(self, y_true: Tensors, y_pred: Tensor) -> Tensor:
        """Return the labels in the shape that the label loss requires."""
        return self.labels(y_true)

    def compare_with_labels(self, y_true: Tensors, y_pred: Tensor) -> Tensor:
        """Return the label loss, one value per sample or place."""
        labels = self.labels_for(y_true, y_pred)
        if self._compare is None:
            return self.default_label_loss(labels, y_pred)
        return label_losses.per_place(self._compare, labels, y_pred)

    def default_label_loss(self, labels: Tensor, y_pred: Tensor) -> Tensor:
        """Return the values of the default label loss: cross-entropy."""
        logits = _divergence.as_logits(y_pred, self.from_logits)
        return label_losses.cross_entropy(labels, logits)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "label_loss": label_losses.serialize(self.label_loss),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        label_loss = label_losses.deserialize(config.get("label_loss"))
        return super().from_config({**config, "label_loss": label_loss})


def term_weights(loss: str, **weights: Any) -> list[Any]:
    """Return the checked weights of the terms of a loss, in the given order.

    Args:
        loss: name of the loss, for the message.
        **weights: floats of at least 0, or schedules, by argument name.

    Raises:
        ValueError: if a weight is negative, or if all weights are 0.
    """
    checked = [
        _schedules.number_or_schedule(
            name, weight, _arguments.non_negative_float
        )
        for name, weight in weights.items()
    ]
    if all(map(_schedules.is_zero, checked)):
        received = ", ".join(f"{name}=0" for name in weights)
        raise ValueError(
            f"At least one weight of {loss} must be above 0. "
            f"Received: {received}"
        )
    return checked
