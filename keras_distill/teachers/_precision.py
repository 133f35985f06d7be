"""InPrecision: a model that computes in another precision than its own.

A layer's precision is fixed when it is made. So a twin is made from the model's
config, and runs on the values of the model's own variables: the model stays as
it is, and when its weights change, the twin's answers do too.

Left out: a twin with folded normalizations. It would have to fold again in
every step; `fold_batch_norm` does it once, into a copy.
"""

import keras

PRECISIONS = ("float32", "bfloat16", "float16")


class InPrecision:
    """Runs a model in inference mode, in a precision of choice.

    Args:
        model: a built Keras model that can be made from its config.
        dtype: one of `PRECISIONS`. Variables keep their own dtype and are cast
            as they are read.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the precision is unknown, or no twin can be made.
    """

    def __init__(self, model, dtype):
        if dtype not in PRECISIONS:
            raise ValueError(
                f"`teacher_dtype` must be one of {PRECISIONS} or None. "
                f"Received: teacher_dtype={dtype!r}"
            )
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`teacher_dtype` is for Keras models; a function computes in "
                f"the precision it was written for. Received: {model!r}"
            )
        self.model = model
        policy = dtype if dtype == "float32" else f"mixed_{dtype}"
        self.twin = _twin(model, policy)

    def __call__(self, inputs):
        outputs, _ = self.twin.stateless_call(
            [variable.value for variable in self.model.trainable_variables],
            [variable.value for variable in self.model.non_trainable_variables],
            inputs,
            training=False,
        )
        return outputs


def _twin(model, policy):
    try:
        twin = type(model).from_config(_with_policy(model.get_config(), policy))
        if not twin.built:
            twin.build_from_config(model.get_build_config())
    except Exception as error:
        raise ValueError(
            f"The teacher {model.name!r} can't be made again from its config, "
            "so it can't run in another precision. Implement `get_config`, or "
            f"leave out `teacher_dtype`. Received: {error}"
        ) from error
    # A variable belongs to the same list in both.
    for layer, other in zip(
        model._flatten_layers(), twin._flatten_layers(), strict=True
    ):
        other.trainable = layer.trainable
    for kind in ("trainable_variables", "non_trainable_variables"):
        shapes = [
            [tuple(variable.shape) for variable in getattr(each, kind)]
            for each in (model, twin)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"The teacher {model.name!r} made again from its config has "
                "other weights, so it can't run in another precision. "
                f"Received: {len(shapes[0])} and {len(shapes[1])} {kind}. "
                "Leave out `teacher_dtype`."
            )
    return twin


def _with_policy(config, policy):
    """Return a model's config with every policy of floats replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": policy}}
        return {key: _with_policy(part, policy) for key, part in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_policy(part, policy) for part in config)
    return config
