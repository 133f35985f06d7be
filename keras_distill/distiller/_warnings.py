"""What a Distiller warns of: things that run, and seldom do what was meant."""

import logging
import warnings

import keras

_log = logging.getLogger("keras_distill")

# Layers of Keras that draw another view of each image.
_AUGMENTING = tuple(
    getattr(keras.layers, name)
    for name in dir(keras.layers)
    if name.startswith("Random") or name in ("AugMix", "CutMix", "MixUp")
    if isinstance(getattr(keras.layers, name), type)
)

_BYPASSED = ("train_step", "test_step", "compute_loss", "compute_metrics")


def teacher_unused(objective, teacher_metrics):
    """Warn if the teacher runs and nothing compares with it."""
    plain = [t for t in objective.all_terms if not t.compares_with_teacher]
    if plain and not objective.uses_teacher and not teacher_metrics:
        warnings.warn(
            "No loss compares with the teacher, so it runs for nothing. "
            f"Received: loss={plain[0].loss.name!r}, which compares with the "
            "labels. Use a DistillationLoss: `FunctionMatching()` for classes, "
            "`BinaryKD()` for labels, `ValueMatching('mse')` for values.",
            stacklevel=3,
        )


def hints_alone():
    """Say in the log that nothing but hints is minimised."""
    _log.warning(
        "No loss was given and the outputs of the models are no classes: the "
        "hints alone are minimised."
    )


def own_steps(student):
    """Warn if the student has steps or losses of its own."""
    own = [
        name
        for name in _BYPASSED
        if not _home_of(student, name).startswith(("keras.", "keras_hub."))
    ]
    if own:
        warnings.warn(
            f"The student {student.name!r} has its own `{own[0]}`, and a "
            "Distiller does not call it: it runs the student's `call` in its "
            "own step. Put what it computes into a loss, into `add_loss`, or "
            "into a subclass of Distiller.",
            stacklevel=3,
        )


def _home_of(model, name):
    for cls in type(model).__mro__:
        if name in vars(cls):
            return cls.__module__
    return "keras."


def random_views(role, model):
    """Warn if a model draws views of its own images."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, _AUGMENTING):
            text = (
                "draws a view that the teacher does not see"
                if role == "student"
                else "is inactive in a teacher, which runs in inference mode"
            )
            warnings.warn(
                f"The {role} {model.name!r} has the layer {layer.name!r} "
                f"({type(layer).__name__}), which {text}. Take it out, and "
                "give it as `augment` to the Distiller, which shows both "
                "models the same view.",
                stacklevel=3,
            )
            return
