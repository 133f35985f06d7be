"""`taylor_scores`: what a loss would gain or lose without each channel."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill._graphs._layers import layers_by_path
from keras_distill.compression._models import model_to_rebuild
from keras_distill.compression.channels._coupling import couple
from keras_distill.compression.channels._layer_rules import rule_for


def taylor_scores(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    loss: Any,
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Return how much a loss depends on each channel, from data.

    Pass the scores to `prune_channels` as `importance`. The score of a channel
    is the first-order estimate of the squared change of the loss without its
    weights, summed over the batches:

        score = sum over batches, sum over weights w of the channel:
                (w * d loss / d w) ** 2

    The loss must not have its minimum at the model. So the loss to the model
    itself, as its own teacher, gives no scores: use labels.

    Source: [Molchanov et al. 2019](https://arxiv.org/abs/1906.10771), the sum
    over single weights.

    Args:
        model: a built functional or Sequential model; for a `Distiller`, its
            student. It is not changed.
        x: as in `fit()`: an array of inputs, or a dataset of `(x, y)`.
        y: labels for arrays. Some hundred samples are enough.
        loss: as in `compile()`: a Keras loss, its name, or a list or dict of
            these for several outputs.
        batch_size: int, the batch size for arrays.

    Returns:
        `{path of a layer: scores}`, arrays of shape `(channels,)` in float32,
        for each layer that makes channels.

    Raises:
        ValueError: if the model has no layer graph, or if a score is not
            finite.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill.compression import prune_channels, taylor_scores

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"),
         keras.layers.Dense(3)]
    )
    x, y = np.random.rand(64, 8), np.arange(64) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scores = taylor_scores(model, x, y, loss=loss)
    student = prune_channels(model, 0.5, importance=scores)
    print(student.count_params())  # 99
    ```
    """
    model = model_to_rebuild("taylor_scores", model)
    # In `fit()`, statistics of normalizations and random generators change.
    copy = Copier().copy(model)
    for layer in copy._flatten_layers():
        layer.trainable = True
    collector = _SumOfSquares()
    copy.compile(optimizer=collector, loss=loss)
    copy.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    sums = {
        id(variable): ops.convert_to_numpy(total)
        for variable, total in zip(copy.trainable_variables, collector.totals)
    }
    paths: dict[keras.layers.Layer, str] = {}
    for path, layer in layers_by_path(copy):
        paths.setdefault(layer, path)
    scores = {}
    for layer, made in couple(copy, rule_for, set()).made.items():
        total = made.sums(layer, lambda weight: sums[id(weight)])
        scores[paths[layer]] = total.astype("float32")
        if not np.isfinite(scores[paths[layer]]).all():
            raise ValueError(
                "The loss or its gradient is NaN or infinite, so it gives no "
                f"scores. Received: loss={loss!r}. Check the labels, and "
                "whether the inputs are scaled as in training."
            )
    return scores


class _SumOfSquares(keras.optimizers.Optimizer):
    """Adds up `(w * gradient) ** 2` and leaves the weights as they are.

    As an optimizer, it gets the gradients on every backend.
    """

    def __init__(self) -> None:
        super().__init__(learning_rate=0.0, name="sum_of_squares")

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.totals = [
            self.add_variable_from_reference(variable, name="total")
            for variable in variables
        ]

    def update_step(
        self,
        gradient: Any,
        variable: keras.Variable,
        learning_rate: Any,
    ) -> None:
        total = self.totals[self._get_variable_index(variable)]
        product = ops.multiply(ops.cast(gradient, variable.dtype), variable)
        self.assign_add(total, ops.square(product))
