"""InPrecision: runs a model in another precision than its own.

The precision of a layer is fixed when it is created. So the model is cloned
from its config with another dtype policy. The clone runs on the values of the
model's own variables: the model does not change, and when its weights change,
the outputs of the clone follow.

Left out: a clone with folded normalizations. It would have to fold again in
every step; `fold_batch_norm` folds once, into a copy.
"""

import keras

from keras_distill._typing import Tensors

PRECISIONS = ("float32", "bfloat16", "float16")


class InPrecision:
    """Runs a model in inference mode, in the given precision.

    Args:
        model: a built Keras model that can be cloned from its config.
        dtype: one of `PRECISIONS`. Variables keep their own dtype and are cast
            as they are read.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the precision is unknown, or the model cannot be cloned.
    """

    def __init__(self, model: keras.Model, dtype: str) -> None:
        if dtype not in PRECISIONS:
            raise ValueError(
                f"`teacher_dtype` must be one of {PRECISIONS} or None. "
                f"Received: teacher_dtype={dtype!r}"
            )
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`teacher_dtype` is for Keras models. Received: "
                f"{model!r}. Remove `teacher_dtype`, and set the precision "
                "inside the function."
            )
        self.model = model
        policy = dtype if dtype == "float32" else f"mixed_{dtype}"
        self.clone = _clone(model, policy)

    def __call__(self, inputs: Tensors) -> Tensors:
        outputs, _ = self.clone.stateless_call(
            [variable.value for variable in self.model.trainable_variables],
            [variable.value for variable in self.model.non_trainable_variables],
            inputs,
            training=False,
        )
        return outputs


def _clone(model, policy):
    try:
        clone = type(model).from_config(
            _with_policy(model.get_config(), policy)
        )
        if not clone.built:
            clone.build_from_config(model.get_build_config())
    except Exception as error:
        raise ValueError(
            f"The teacher {model.name!r} cannot be cloned from its config, so "
            "it cannot run in another precision. Implement `get_config`, or "
            f"remove `teacher_dtype`. Received: {error}"
        ) from error
    # Both must have the same variables in the same list, in the same order.
    for layer, other in zip(
        model._flatten_layers(), clone._flatten_layers(), strict=True
    ):
        other.trainable = layer.trainable
    for kind in ("trainable_variables", "non_trainable_variables"):
        shapes = [
            [tuple(variable.shape) for variable in getattr(each, kind)]
            for each in (model, clone)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"A clone of the teacher {model.name!r} from its config must "
                "have the same weights, to run in another precision. Received: "
                f"{len(shapes[0])} {kind} in the teacher and "
                f"{len(shapes[1])} in the clone, or other shapes. Remove "
                "`teacher_dtype`."
            )
    return clone


def _with_policy(config, policy):
    """Return a model's config with every dtype policy replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": policy}}
        return {key: _with_policy(part, policy) for key, part in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_policy(part, policy) for part in config)
    return config
