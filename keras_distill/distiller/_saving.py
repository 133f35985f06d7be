"""What a Distiller writes: the student's state, and nothing of its teacher.

Keras saves a model's layers and its optimizer. A resumed run ends like a run
that never stopped only if the random generators continue as well, and Keras
does not save those. The teacher is not saved: it belongs to the caller, who
assigns it again after loading.
"""

import keras

from keras_distill import _backend
from keras_distill._keras_internals import random_states
from keras_distill.teachers._live_teacher import AbsentTeacher

# The arguments of `Distiller` that are in its config.
PARTS = (
    "student",
    "augment",
    "hints",
    "student_preprocessing",
    "teacher_preprocessing",
    "teacher_dtype",
    "tokens_per_chunk",
    "on_policy",
)
_SEED_STATE = "seed_state_"
_GLOBAL_STATE = "global_random_state"


def config_of(distiller):
    """Return the config of a Distiller, without its teacher."""
    parts = {name: getattr(distiller, name) for name in PARTS}
    parts["projectors"] = list(distiller.projectors)
    return {
        "name": distiller.name,
        **{
            name: keras.saving.serialize_keras_object(part)
            for name, part in parts.items()
        },
    }


def parts_of(config, custom_objects):
    """Return `(arguments, projectors)` from the config of a Distiller."""

    def part(name):
        return keras.saving.deserialize_keras_object(
            config[name], custom_objects=custom_objects
        )

    arguments = {name: part(name) for name in PARTS}
    arguments |= {"name": config["name"], "teacher": _not_saved()}
    return arguments, part("projectors")


def _not_saved():
    return AbsentTeacher(
        "This Distiller was loaded from a file, which holds the student and "
        "not the teacher. Assign `distiller.teacher = teacher` before you "
        "train or evaluate it."
    )


class CompileArguments:
    """The arguments of `compile()`, in a plain object.

    Keras would track and save them if they were attributes of the model.
    """

    def __init__(self, arguments):
        self._arguments = arguments

    def config(self):
        """Return the serialized arguments."""
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._arguments.items()
        }


def save_random_states(distiller, store):
    """Write the state of every random generator to a Keras store."""
    for index, state in enumerate(random_states(distiller)):
        store[f"{_SEED_STATE}{index}"] = state
    state = _backend.global_random_state()
    if state is not None:
        store[_GLOBAL_STATE] = state


def load_random_states(distiller, store):
    """Read the state of every random generator from a Keras store.

    Raises:
        ValueError: if the file has the states of other generators.
    """
    states = random_states(distiller)
    saved = [name for name in store.keys() if name.startswith(_SEED_STATE)]
    if len(saved) != len(states):
        raise ValueError(
            "The file must have the state of every random generator. Received: "
            f"a file with {len(saved)} states for a Distiller with "
            f"{len(states)} generators. Load it into a Distiller with the same "
            "student and the same `augment`, or load the student's weights "
            "alone into `distiller.student`."
        )
    for index, state in enumerate(states):
        state.assign(store[f"{_SEED_STATE}{index}"])
    if _GLOBAL_STATE in store.keys():
        _backend.set_global_random_state(store[_GLOBAL_STATE][...])


def variables_beside_the_student(distiller):
    """Return what a run changes and no file holds.

    These are the random generators of the teacher, and variables of the loss
    that a callback may change.
    """
    return [
        *distiller._live_teacher.seed_states,
        *distiller._logs.objective.variables,
    ]
