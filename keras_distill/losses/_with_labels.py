"""WithLabels: the base of the losses that also compare with the labels."""

from keras_distill import _arguments
from keras_distill import _schedules
from keras_distill.losses import _divergence
from keras_distill.losses import _label_loss as label_losses
from keras_distill.losses._distillation_loss import DistillationLoss


class WithLabels(DistillationLoss):
    """A weighted sum of terms, of which one is a loss for the labels.

    Args:
        label_loss: a Keras loss for the labels, its name, or `None` for the
            default of the class. A name follows `from_logits`.
        temperature, from_logits, reduction, name, dtype: as in
            `DistillationLoss`.
    """

    fixed = ("label_loss",)

    def __init__(
        self, label_loss, temperature, from_logits, reduction, name, dtype
    ):
        super().__init__(
            temperature,
            from_logits=from_logits,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.label_loss = label_loss
        self._compare = self.resolved_label_loss()

    def resolved_label_loss(self):
        """Return `(labels, student) -> values`, `None` for the default."""
        if self.label_loss is None:
            return None
        return label_losses.resolve(self.label_loss, self.from_logits)

    def all_parts(self):
        """Return the terms as `parts()` does, also those of weight 0."""
        raise NotImplementedError

    @property
    def uses_teacher(self):
        return set(self.parts()) != {"label_loss"}

    def missing_labels(self):
        """Return what to tell a user whose data has no labels."""
        raise NotImplementedError

    def call(self, y_true, y_pred):
        return sum(
            weight * part(y_true, y_pred)
            for weight, part in self.parts().values()
        )

    @property
    def uses_labels(self):
        return "label_loss" in self.parts()

    def parts(self):
        # A part of no weight is not computed: without a weight on the labels
        # it needs none, and labels alone are ordinary training even beside a
        # broken teacher. What a schedule gives is always computed.
        return {
            name: part
            for name, part in self.all_parts().items()
            if not _schedules.is_zero(part[0])
        }

    def labels(self, y_true):
        """Return the labels, or raise `ValueError` if there are none."""
        if not isinstance(y_true, dict) or y_true.get("labels") is None:
            raise ValueError(self.missing_labels())
        return y_true["labels"]

    def labels_for(self, y_true, y_pred):
        """Return the labels as the label loss takes them beside `y_pred`."""
        return self.labels(y_true)

    def compare_with_labels(self, y_true, y_pred):
        """Return the label loss of each sample."""
        labels = self.labels_for(y_true, y_pred)
        if self._compare is None:
            return self.default_label_loss(labels, y_pred)
        return label_losses.per_place(self._compare, labels, y_pred)

    def default_label_loss(self, labels, y_pred):
        """Return the label loss of each sample where none was given."""
        logits = _divergence.as_logits(y_pred, self.from_logits)
        return label_losses.cross_entropy(labels, logits)

    def get_config(self):
        return {
            **super().get_config(),
            "label_loss": label_losses.serialize(self.label_loss),
        }

    @classmethod
    def from_config(cls, config):
        label_loss = label_losses.deserialize(config.get("label_loss"))
        return super().from_config({**config, "label_loss": label_loss})


def non_negative(name, value):
    """Return a weight: a number of at least 0, or a schedule."""
    return _schedules.number_or_schedule(
        name, value, _arguments.non_negative_float
    )


def check_any_weight(loss, **weights):
    """Raise if all weights are 0: there would be nothing to compute."""
    if all(map(_schedules.is_zero, weights.values())):
        received = ", ".join(f"{k}={v:g}" for k, v in weights.items())
        raise ValueError(
            f"At least one weight of {loss} must be above 0. "
            f"Received: {received}"
        )
