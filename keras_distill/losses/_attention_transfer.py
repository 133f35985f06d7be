"""AttentionTransfer: compares the attention maps of two features."""

from typing import Any

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _relational_loss
from keras_distill.losses._distance import unit_vector
from keras_distill.losses._relational_loss import RelationalLoss
from keras_distill.losses._shapes import same_sizes


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionTransfer(RelationalLoss):
    """Compares attention maps: the places where features have large values.

    The attention map `Q` of a feature `A` of shape `(places, channels)` is the
    mean over the channels, at unit length over the places:

        q_i  = mean_c |A_ic|^p
        Q    = q / ||q||
        loss = mean_i (Q_i(teacher) - Q_i(student))^2

    A `Hint` with this loss requires no projector. If the resolutions of the
    features differ, the larger one is resized to the smaller one.

    Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention",
    https://arxiv.org/abs/1612.03928, in the form of their published code: the
    mean of the squared differences over the places. (The paper uses the root of
    their sum.) This mean is small, so use a large weight. The paper's weight on
    CIFAR-10, half of its beta, is 500 in this form.

    Args:
        p: float of at least 1. A higher power emphasizes the channels with the
            largest values.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the teacher's feature, `(batch, ..., channels)`.
        y_pred: the student's feature, of any number of channels.
        sample_weight: optional weights `(batch,)` or `(batch, ...)`. Places of
            weight 0 are left out of the attention map.

    Raises:
        ValueError: if `p` is below 1, if the features have no places, or if
            their places differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import AttentionTransfer

    loss = AttentionTransfer()
    teacher = np.random.rand(2, 8, 8, 32)
    student = 0.1 * teacher[..., :16]
    print(float(loss(teacher, student)))
    ```
    """

    same_places = True

    def __init__(
        self,
        p: float = 2.0,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "attention_transfer",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(reduction, name, dtype)
        is_number = isinstance(p, (int, float)) and not isinstance(p, bool)
        if not is_number or not 1 <= p < float("inf"):
            raise ValueError(
                f"`p` must be a finite number of at least 1. Received: p={p!r}"
            )
        self.p = float(p)

    def call(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        _check_places(y_true.shape, y_pred.shape)
        mask = _relational_loss.mask_of(sample_weight, y_pred)
        difference = self._attention(y_true, mask) - self._attention(
            y_pred, mask
        )
        counts = ops.broadcast_to(mask, ops.shape(y_pred[..., :1]))
        counts = ops.reshape(counts, ops.shape(difference))
        return ops.sum(ops.square(difference), axis=-1) / (
            _relational_loss.count_of(counts, axis=-1)
        )

    def _attention(self, feature, mask):
        """Return the attention map, `(batch, places)`."""
        feature = ops.where(mask, ops.cast(feature, "float32"), 0.0)
        axes = tuple(range(1, len(feature.shape)))
        # Divided by the maximum, which changes nothing at unit length: a power
        # of large values would overflow.
        peak = ops.max(ops.abs(feature), axis=axes, keepdims=True)
        peak = ops.stop_gradient(ops.where(peak < 1e-12, 1.0, peak))
        strength = ops.mean(ops.abs(feature / peak) ** self.p, axis=-1)
        return unit_vector(ops.reshape(strength, (ops.shape(strength)[0], -1)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "p": self.p}


def _check_places(teacher_shape, student_shape):
    teacher, student = tuple(teacher_shape), tuple(student_shape)
    received = f"Received: teacher {teacher}, student {student}."
    if len(student) < 3:
        raise ValueError(
            "AttentionTransfer requires features with places, of rank 3 or "
            f"more. {received} Use the layer before the pooling, or use "
            "`SimilarityPreserving()` or `RelationalKD()`."
        )
    if not same_sizes(teacher[1:-1], student[1:-1]):
        raise ValueError(
            "AttentionTransfer requires features of the same height and width "
            f"(or length). {received} Use it as the loss of a `Hint`, which "
            "resizes feature maps."
        )
