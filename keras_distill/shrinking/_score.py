"""Which candidate is best: the first figure on the validation data."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_distill._keras_internals import is_better_if_higher
from keras_distill.reports._labels_and_metrics import Target


class Score:
    """The figure that decides.

    Args:
        targets: as `check_data` returns them.
        form: the form of the files, as in `write_form`.

    Raises:
        ValueError: if it is unknown whether a higher figure is better.
    """

    def __init__(self, targets: list[Target], form: str) -> None:
        target = next(target for target in targets if target.metrics)
        name, metric = next(iter(target.metrics.items()))
        self._higher = metric is None or _direction(name, metric)
        # Files in float32 and packed files have the outputs of the model.
        has_own = form not in ("packed", "litert_float32")
        prefix = f"{form}_" if has_own else ""
        self.key = f"{prefix}{target.prefix}{name}"

    def best(self, figures: Mapping[str, Mapping[str, Any]]) -> str:
        """Return the name of the best model; of equal ones, the first.

        Raises:
            RuntimeError: if there is no model.
        """
        if not figures:
            raise RuntimeError(
                "The file of each trained network is a little larger than "
                "`max_bytes`, because its weights compress less well than "
                "before. Start again with a smaller limit and another "
                "directory."
            )
        choose = max if self._higher else min
        return choose(figures, key=lambda name: figures[name][self.key])


def _direction(name, metric):
    higher = None
    if isinstance(metric, keras.Metric):
        higher = is_better_if_higher(metric)
    if higher is None:
        raise ValueError(
            "The first of `metrics` chooses the network, so it must be a Keras "
            "metric of which is known whether a higher value is better. "
            f"Received: {name!r}: {metric!r}"
        )
    return higher
