"""What a Distiller refuses of its models and its data, as early as it can."""

import math
import warnings

import keras
from keras import tree

from keras_distill import _backend
from keras_distill.distiller import _warnings
from keras_distill.distiller._text import check_same_tokenizer
from keras_distill.distiller._text import text_preprocessor


def check_roles(student, teacher):
    """Raise unless the student is a model and not the teacher."""
    if not isinstance(student, keras.Model):
        raise TypeError(
            "`student` must be a keras.Model. Received: "
            f"{student!r} of type {type(student).__name__}"
        )
    if hasattr(student, "student") and hasattr(student, "teacher"):
        raise TypeError(
            "`student` must not be a Distiller. Received: the Distiller "
            f"{student.name!r}. Pass `distiller.student`."
        )
    if student is teacher:
        raise ValueError(
            "Teacher and student must be two models. Received: "
            f"{student.name!r} for both. Copy the model with "
            "`keras.models.clone_model`."
        )


def check_no_shared_weights(student, live_teacher):
    """Raise if training the student would change the teacher."""
    taught = {id(variable): variable for variable in student.weights}
    shared = [v.path for v in live_teacher.variables if id(v) in taught]
    if shared:
        raise ValueError(
            "The student must not share weights with the teacher, because "
            "training would change the teacher. Received: "
            f"{len(shared)} shared weights, such as {shared[:3]}. Copy the "
            "layers with `keras.models.clone_model(model)` and `set_weights`."
        )
    if student.built:
        _warn_if_larger(student, live_teacher.members)
        _warnings.random_views("student", student)
    for member in live_teacher.members:
        check_same_tokenizer(student, member)
        if isinstance(member, keras.Model):
            _warnings.random_views("teacher", member)


def _warn_if_larger(student, members):
    sizes = [_size(m) for m in members if isinstance(m, keras.Model)]
    if sizes and _size(student) > sum(sizes):
        warnings.warn(
            "The student is larger than the teacher. Received: "
            f"{_size(student):,} parameters in the student and "
            f"{sum(sizes):,} in the teacher. Check that they are not swapped.",
            stacklevel=2,
        )


def _size(model):
    # Without scalars: `quantize_aware` adds the ranges of activations to a
    # copy of the teacher.
    return sum(math.prod(w.shape) for w in model.weights if len(w.shape))


def check_export(student_preprocessing):
    """Raise if an exported student would lack its preprocessing."""
    if student_preprocessing is not None:
        raise ValueError(
            "The exported file would leave out `student_preprocessing`. "
            f"Received: {student_preprocessing!r}. Put it in front of the "
            "student in one model, or export `distiller.student` and "
            "preprocess its inputs."
        )


def check_not_fitting(is_fitting):
    """Raise if `compile()` is called during `fit()`."""
    if is_fitting:
        raise RuntimeError(
            "`compile()` was called during `fit()`, which uses the steps "
            "compiled before. To change the temperature, alpha or a weight "
            "during one `fit()`, use a schedule in the loss. Otherwise call "
            "`compile()` between two calls of `fit()`."
        )


def preprocessing(argument, given, model):
    """Return the preprocessing of a model: the one given, or its own.

    A KerasHub task carries a `preprocessor` that its `predict` applies and its
    `call` does not. That of a text task runs outside of the step, see
    `_text.py`.
    """
    if given is None:
        attached = getattr(model, "preprocessor", None)
        if attached is None or text_preprocessor(model) is not None:
            return None
        given = getattr(attached, "image_converter", None)
        if given is None:
            raise ValueError(
                "A preprocessor must have an `image_converter` to run inside "
                f"a training step. Received: {type(attached).__name__} of "
                f"{model.name!r}. Apply it in the data pipeline, and set "
                f"`{model.name}.preprocessor = None`."
            )
    if not callable(given):
        raise TypeError(
            f"`{argument}` must be a layer or a callable. Received: {given!r}"
        )
    weights = getattr(given, "trainable_weights", [])
    if weights:
        raise ValueError(
            f"`{argument}` must have no trainable weights. Received: "
            f"{given.name!r} with {len(weights)} trainable weights. Make it "
            "part of the model, or set its `trainable` to False."
        )
    return given


def loss_policy(student):
    """Return the dtype policy that decides whether losses are scaled.

    Keras scales the loss if the policy of the model is `mixed_float16`. Here
    one layer that computes in float16 is enough.
    """
    for layer in student._flatten_layers():
        policy = layer.dtype_policy
        if getattr(policy, "compute_dtype", None) == "float16":
            return keras.dtype_policies.DTypePolicy("mixed_float16")
    return student.dtype_policy


def check_not_empty(x):
    """Raise if data that knows its length has none."""
    try:
        length = len(tree.flatten(x)[0])
    except (TypeError, IndexError):
        return  # The length is unknown until the data is read.
    if length == 0:
        raise ValueError(_backend.EMPTY)
