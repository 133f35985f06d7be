"""SavesStudent: what a Distiller writes, which is nothing of its teacher.

Keras saves a model's layers and its optimizer. Two things are missing for a run
that is killed and resumed to end like one that never stopped: the state of the
random generators, which Keras leaves out, and a teacher, which is not ours to
copy and has to be assigned again.
"""

import keras

from keras_distill import _backend
from keras_distill.teachers._live_teacher import AbsentTeacher


class SavesStudent:
    """Saving and loading of a Distiller, in every form that Keras has."""

    def __dir__(self):
        # Keras saves what it finds among the attributes. The teacher is there,
        # but not to be found.
        return [name for name in super().__dir__() if name != "teacher"]

    def _keep_compile_arguments(self, arguments):
        self._compile_arguments = _Arguments(arguments)

    def get_compile_config(self):
        if not self.compiled:
            return {}
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._compile_arguments.values.items()
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self):
        return {
            "name": self.name,
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in _PARTS
            },
            "projectors": keras.saving.serialize_keras_object(
                list(self.projectors)
            ),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in _PARTS
        }
        distiller = cls(
            name=config["name"], teacher=AbsentTeacher(_NOT_SAVED), **parts
        )
        distiller.projectors = keras.saving.deserialize_keras_object(
            config["projectors"], custom_objects=custom_objects
        )
        return distiller

    def _seed_states(self):
        """Return the state of every random generator, in a fixed order."""
        weights = {id(weight) for weight in self.weights}
        return [v for v in self.variables if id(v) not in weights]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for index, state in enumerate(self._seed_states()):
            store[f"seed_state_{index}"] = state
        state = _backend.global_random_state()
        if state is not None:
            store[_GLOBAL_STATE] = state

    def load_own_variables(self, store):
        states = self._seed_states()
        saved = [name for name in store.keys() if name.startswith("seed_state")]
        if len(saved) != len(states):
            raise ValueError(
                f"The file holds the state of {len(saved)} random generators "
                f"and this Distiller has {len(states)}. Load it into a "
                "Distiller with the same student and the same `augment`, or "
                "load the student's weights alone into `distiller.student`."
            )
        for index, state in enumerate(states):
            state.assign(store[f"seed_state_{index}"])
        if _GLOBAL_STATE in store.keys():
            _backend.set_global_random_state(store[_GLOBAL_STATE][...])

    def load_weights(self, *args, **kwargs):
        # An optimizer without slots would leave those of the file behind.
        if self.compiled and self.built and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        super().load_weights(*args, **kwargs)


_NOT_SAVED = (
    "This Distiller was loaded from a file, which holds the student and not "
    "the teacher. Assign `distiller.teacher = teacher` before training or "
    "evaluating it."
)
_GLOBAL_STATE = "global_random_state"
_PARTS = (
    "student",
    "augment",
    "hints",
    "student_preprocessing",
    "teacher_preprocessing",
    "teacher_dtype",
)


class _Arguments:
    """Hides the arguments from Keras, which would track and save them."""

    def __init__(self, values):
        self.values = values
