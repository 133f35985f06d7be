"""RelationalKD: distances and angles between the samples of a batch."""

from typing import Any

import keras
from keras import ops

from keras_distill import _arguments
from keras_distill._typing import Tensor
from keras_distill.losses import _relational_loss
from keras_distill.losses._relational_loss import RelationalLoss

# Wider features are rotated into the space that the batch spans.
_WIDE = 256

# Two samples are at the same point if their distance is below this. The largest
# value of the features is 1.
_ZERO = 1e-12


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalKD(RelationalLoss):
    """Compares the distances and the angles between embeddings of a batch.

    With the embeddings `x_i` of `n` samples, the Huber loss `h` with delta 1,
    and for both teacher and student

        d_ij    = ||x_i - x_j|| / mean of ||x_k - x_l|| over k != l
        a_ijk   = cos of the angle at x_i between x_j and x_k

    the loss of a sample is

        loss_i = distance_weight * mean_j  h(d_ij(teacher), d_ij(student))
               + angle_weight    * mean_jk h(a_ijk(teacher), a_ijk(student))

    The features may have any width, resolution and rank, and require no
    projector. Angles require memory for `batch^3` numbers per model: 64 MiB for
    a batch of 256. With `angle_weight=0`, they are not computed.

    The loss compares the samples of one batch. On several devices, each device
    compares the samples of its own part of the batch, except on JAX, which
    compares the whole batch.

    Source: Park et al. 2019, "Relational Knowledge Distillation",
    https://arxiv.org/abs/1904.05068, with the means of their published code:
    over all `n^2` pairs and `n^3` triplets. Pairs and triplets that contain a
    sample twice are included; most of their values are 0.

    Args:
        distance_weight: float of at least 0.
        angle_weight: float of at least 0. The defaults 1 and 2 are those of the
            paper. Comparisons on CIFAR-100 use 25 and 50 (Tian et al. 2020,
            https://arxiv.org/abs/1910.10699).
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
        ValueError: if a weight is negative, or if both are 0.

    Example:

    ```python
    import numpy as np
    from keras_distill import RelationalKD

    loss = RelationalKD()
    teacher = np.random.rand(4, 64)
    student = np.random.rand(4, 16)
    print(float(loss(teacher, student)))
    ```
    """

    def __init__(
        self,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "relational_kd",
        dtype: str | None = "float32",
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.distance_weight = _arguments.non_negative_float(
            "distance_weight", distance_weight
        )
        self.angle_weight = _arguments.non_negative_float(
            "angle_weight", angle_weight
        )
        if not self.distance_weight and not self.angle_weight:
            raise ValueError(
                "At least one weight of RelationalKD must be above 0. "
                "Received: distance_weight=0, angle_weight=0"
            )

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
        counts = _relational_loss.any_place(masks[1])
        pairs = ops.logical_and(counts[:, None], counts[None, :])
        number = _relational_loss.count_of(counts)
        relations = [
            _relations(_relational_loss.flat(ops.cast(f, "float32"), m), pairs)
            for f, m in zip((y_true, y_pred), masks)
        ]
        (teacher_distances, teacher), (student_distances, student) = relations
        values = 0.0
        if self.distance_weight:
            terms = _huber(teacher_distances, student_distances)
            values = values + self.distance_weight * (
                ops.sum(terms, axis=-1) / number
            )
        if self.angle_weight:
            terms = _huber(_angles(teacher), _angles(student))
            values = values + self.angle_weight * (
                ops.sum(terms, axis=(1, 2)) / number**2
            )
        return values

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }


def _relations(embeddings, pairs):
    """Return distances `(n, n)` and directions `(n, n, width)`, 0 off `pairs`.

    Args:
        embeddings: `(n, width)`.
        pairs: bool `(n, n)`, which pairs count.
    """
    embeddings = _normalized(embeddings)
    vectors = ops.subtract(embeddings[None, :], embeddings[:, None])
    squares = ops.sum(ops.square(vectors), axis=-1)
    apart = ops.logical_and(pairs, squares > _ZERO**2)
    # The gradient of the root at 0 is infinite, so its input is never 0.
    distances = ops.sqrt(ops.where(apart, squares, 1.0))
    directions = vectors / distances[..., None]
    directions = ops.where(apart[..., None], directions, 0.0)
    distances = ops.where(apart, distances, 0.0)
    number = ops.sum(ops.cast(pairs, "float32"))
    # Without the pairs of a sample with itself.
    number = number - ops.sqrt(number)
    mean = ops.sum(distances) / ops.maximum(number, 1.0)
    return distances / ops.where(mean > 0, mean, 1.0), directions


def _normalized(embeddings):
    """Return embeddings of mean 0 and maximum 1, not much wider than the batch.

    Shift, scale and rotation do not change the relations. The space that a
    batch spans has at most as many dimensions as samples, and a rotation into
    it keeps lengths, angles and gradients. So the memory for the pairs does not
    grow with the resolution of a feature map.
    """
    embeddings = embeddings - ops.stop_gradient(ops.mean(embeddings, axis=0))
    peak = ops.max(ops.abs(embeddings))
    embeddings = embeddings / ops.stop_gradient(
        ops.where(peak < _ZERO, 1.0, peak)
    )
    width = embeddings.shape[-1]
    if width is not None and width <= _WIDE:
        return embeddings
    basis, _ = ops.qr(ops.transpose(ops.stop_gradient(embeddings)))
    return ops.matmul(embeddings, basis)


def _angles(directions):
    """Return the cosines `(n, n, n)` of the angles at each sample."""
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def _huber(first, second):
    distance = ops.abs(ops.subtract(first, second))
    return ops.where(distance < 1.0, 0.5 * ops.square(distance), distance - 0.5)
