"""Schedules: numbers that may change while a model trains.

A schedule is a `keras.optimizers.schedules.LearningRateSchedule`, or any
function that gets the step and returns a number. It is evaluated inside the
compiled step, from the optimizer's iterations, which are an input of the step.
So its value is exact at every step, a resumed run continues it, and nothing is
compiled again.
"""

import inspect
import types
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Self
from typing import TypeAlias

import keras
from keras import ops

from keras_distill._typing import Tensor

Schedule: TypeAlias = (
    keras.optimizers.schedules.LearningRateSchedule | Callable[[Tensor], Tensor]
)


def is_schedule(value: Any) -> bool:
    """Return whether `value` has to be evaluated at a step."""
    return callable(value)


def number_or_schedule(
    name: str, value: Any, check: Callable[[str, Any], float]
) -> Any:
    """Return a checked number, or a schedule whose first value is checked.

    Args:
        name: name of the argument, for messages.
        value: a number or a schedule.
        check: a check of `_arguments`.

    Raises:
        ValueError: if the number, or the value of the schedule at step 0, is
            out of range.
    """
    if inspect.isclass(value) or not is_schedule(value):
        return check(name, value)
    first = float(ops.convert_to_numpy(value_at(value, 0)))
    try:
        check(name, first)
    except ValueError as error:
        raise ValueError(
            f"The schedule `{name}`={value!r} starts with a value that is out "
            f"of range. {error}"
        ) from error
    return value


class Moment(NamedTuple):
    """The step at which schedules and variables are read.

    Args:
        step: the optimizer's iterations, a scalar, or `None` if there are no
            schedules.
        values: the values of variables at this step, by the id of the variable.
    """

    step: Tensor = None
    values: Mapping[int, Tensor] = types.MappingProxyType({})


def value_at(value: Any, step: Tensor) -> Tensor:
    """Return a number unchanged, and the value of a schedule at a step.

    Args:
        value: a number or a schedule. A function gets the step in float32.
        step: the optimizer's iterations, a scalar.
    """
    if not is_schedule(value):
        return value
    if not isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        # TensorFlow refuses `1.5 * step` if the step is an integer.
        step = ops.cast(step, "float32")
    return ops.cast(ops.convert_to_tensor(value(step)), "float32")


def product_at(weights: Iterable[Any], moment: Moment) -> Tensor:
    """Return the product of numbers, schedules and variables at a moment."""
    product = 1.0
    for weight in weights:
        if isinstance(weight, keras.Variable):
            weight = moment.values[id(weight)]
        product = product * value_at(weight, moment.step)
    return product


def complement(value: Any) -> Any:
    """Return `1 - value` of a number or a schedule."""
    if is_schedule(value):
        return lambda step: 1.0 - value_at(value, step)
    return 1.0 - value


def is_zero(value: Any) -> bool:
    """Return whether `value` is the number 0. A schedule is never zero."""
    return isinstance(value, (int, float)) and value == 0


def serialize(value: Any) -> Any:
    """Return the config of a number or a schedule."""
    if is_schedule(value):
        return keras.saving.serialize_keras_object(value)
    return value


def deserialize(config: Any) -> Any:
    """Return the number or schedule that `serialize` was called with."""
    if isinstance(config, dict):
        return keras.saving.deserialize_keras_object(config)
    return config


def shallow_copy(thing: Any) -> Any:
    """Return a copy that shares all attributes.

    `copy.copy` copies a Keras object by its config, which cannot contain
    tensors.
    """
    copy = object.__new__(type(thing))
    copy.__dict__.update(thing.__dict__)
    return copy


class Controlled:
    """Base class of objects whose numbers may be schedules.

    Numbers, strings and schedules can be assigned only once. Compiled steps
    contain their values, so a later assignment would have no effect and no
    error. `__setattr__` turns it into an error. A property for each attribute
    would do the same, but custom losses would have to define theirs.
    """

    # Names of the attributes that may be schedules.
    controls: tuple[str, ...] = ()

    # Names of further attributes that can be assigned only once.
    fixed: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        current = self.__dict__.get(name)
        is_fixed = isinstance(current, (int, float, str)) or name in (
            *self.controls,
            *self.fixed,
        )
        if name in self.__dict__ and is_fixed and not name.startswith("_"):
            kind = type(self).__name__
            raise AttributeError(
                f"`{name}` of a {kind} cannot change, because compiled "
                f"training steps contain its value. Received: {name}={value!r}."
                " To change it during `fit()`, pass a schedule to the "
                "constructor: a keras.optimizers.schedules."
                "LearningRateSchedule, or a function of the step. To change it "
                f"between two calls of `fit()`, create a new {kind} and call "
                "`compile()` again."
            )
        super().__setattr__(name, value)

    @property
    def has_schedules(self) -> bool:
        """Whether a number of this object depends on the step."""
        return any(is_schedule(getattr(self, name)) for name in self.controls)

    def at(self, step: Tensor) -> Self:
        """Return a copy of this object with the schedules' values at a step.

        Args:
            step: the optimizer's iterations, a scalar.
        """
        if not self.has_schedules:
            return self
        evaluated = shallow_copy(self)
        for name in self.controls:
            value = value_at(getattr(self, name), step)
            object.__setattr__(evaluated, name, value)
        return evaluated

    def scheduled_values(self, step: Tensor) -> dict[str, Tensor]:
        """Return the value of each schedule at a step, by attribute name.

        Args:
            step: the optimizer's iterations, a scalar.
        """
        return {
            name: value_at(getattr(self, name), step)
            for name in self.controls
            if is_schedule(getattr(self, name))
        }
