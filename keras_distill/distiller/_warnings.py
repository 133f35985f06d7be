"""What a Distiller warns about: code that runs, but is probably a mistake."""

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
    """Warn if the teacher runs but nothing compares with it."""
    plain = [t for t in objective.output_terms if not t.compares_with_teacher]
    if plain and not objective.uses_teacher and not teacher_metrics:
        warnings.warn(
            "The teacher runs, but no loss compares with it. Received: "
            f"loss={plain[0].loss.name!r}, which compares with the labels. "
            "Use a DistillationLoss: `FunctionMatching()` for classes, "
            "`BinaryKD()` for independent labels, `ValueMatching('mse')` for "
            "values.",
            stacklevel=3,
        )


def hints_alone():
    """Log that only the hints are minimised."""
    _log.warning(
        "No loss was given, and the outputs of the models are not classes: "
        "only the hints are minimised."
    )


def own_steps(student):
    """Warn if the student overrides steps or losses of `keras.Model`."""
    own = [
        name
        for name in _BYPASSED
        if not _home_of(student, name).startswith(("keras.", "keras_hub."))
    ]
    if own:
        warnings.warn(
            f"The student {student.name!r} overrides `{own[0]}`, which a "
            "Distiller does not call: its own step runs the student's `call`. "
            "Move the computation into a loss, into `add_loss`, or into a "
            "subclass of Distiller.",
            stacklevel=3,
        )


def _home_of(model, name):
    for cls in type(model).__mro__:
        if name in vars(cls):
            return cls.__module__
    return "keras."


def random_views(role, model):
    """Warn if a model contains layers that augment its images."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, _AUGMENTING):
            text = (
                "augments images that the teacher sees without augmentation"
                if role == "student"
                else "does nothing, because the teacher runs in inference mode"
            )
            warnings.warn(
                f"The {role} {model.name!r} has the layer {layer.name!r} "
                f"({type(layer).__name__}), which {text}. Remove it from the "
                "model and pass it to the Distiller as `augment`, which shows "
                "both models the same view.",
                stacklevel=3,
            )
            return
