"""SimilarityPreserving: compares which samples of a batch are similar."""

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses import _relational_loss
from keras_distill.losses._distance import unit_vector
from keras_distill.losses._relational_loss import RelationalLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class SimilarityPreserving(RelationalLoss):
    """Compares the similarities between the samples of a batch.

    With the features as a matrix `F` of shape `(batch, all)`:

        G      = F F^T, each row at unit length
        loss_i = mean_j (G_ij(teacher) - G_ij(student))^2

    The mean over the batch is the published `1/b^2 ||G_T - G_S||_F^2`. The
    features may have any width, resolution and rank, and require no projector.

    The loss compares the samples of one batch, so it requires batches of more
    than a few samples. On several devices, each device compares the samples of
    its own part of the batch, except on JAX, which compares the whole batch.

    Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation",
    https://arxiv.org/abs/1907.09682. The paper uses a weight of 3000 on
    CIFAR-10.

    Args:
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation, float32 by default.

    Call arguments:
        y_true: the teacher's feature, `(batch, ...)`.
        y_pred: the student's feature, `(batch, ...)`.
        sample_weight: optional weights `(batch,)` or per place. Samples of
            weight 0 are left out of the relations, and places of weight 0 are
            left out of the features.

    Raises:
        ValueError: if the places of the weights and the features differ.

    Example:

    ```python
    import numpy as np
    from keras_distill import SimilarityPreserving

    loss = SimilarityPreserving()
    teacher = np.random.rand(4, 8, 8, 32)
    student = np.random.rand(4, 4, 4, 16)
    print(float(loss(teacher, student)))
    ```
    """

    def __init__(
        self,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "similarity_preserving",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(reduction, name, dtype)

    def call(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        masks = [
            _relational_loss.mask_of(sample_weight, feature)
            for feature in (y_true, y_pred)
        ]
        teacher, student = map(_similarities, (y_true, y_pred), masks)
        counts = _relational_loss.any_place(masks[1])
        values = ops.sum(ops.square(teacher - student), axis=-1)
        values = values / _relational_loss.count_of(counts)
        return ops.where(counts, values, 0.0)


def _similarities(feature, mask):
    """Return the similarities `(batch, batch)`, rows of unit length."""
    feature = _relational_loss.flat(ops.cast(feature, "float32"), mask)
    # Divided by the maximum, which changes nothing at unit length: products of
    # large values would overflow.
    peak = ops.max(ops.abs(feature))
    peak = ops.stop_gradient(ops.where(peak < 1e-12, 1.0, peak))
    feature = feature / peak
    return unit_vector(ops.matmul(feature, ops.transpose(feature)))
