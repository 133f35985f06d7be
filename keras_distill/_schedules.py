"""Numbers that may change while a model trains: schedules.

A schedule is a `keras.optimizers.schedules.LearningRateSchedule`, or any object
that is called with the step and returns a number. It is evaluated inside the
compiled step, from the optimizer's iterations, which travel with the batch: so
its value is exact at every step, a resumed run continues it, and nothing is
compiled again.
"""

import inspect
import types
import typing

import keras
from keras import ops


def is_schedule(value):
    """Tell whether `value` is evaluated at a step."""
    return callable(value)


def number_or_schedule(name, value, check):
    """Return `value` if it is a schedule, else what `check(name, value)` does.

    Args:
        name: name of the argument, for messages.
        value: a number, or a schedule. Its value at step 0 is checked.
        check: a check of `_arguments`.

    Raises:
        ValueError: if the number, or the schedule's first value, is refused.
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


class Moment(typing.NamedTuple):
    """When a step takes place.

    Args:
        step: the optimizer's iterations, a scalar, or `None` if nothing asks.
        values: the values of variables at this step, by their id.
    """

    step: typing.Any = None
    values: typing.Mapping = types.MappingProxyType({})


def value_at(value, step):
    """Return a number as it is, and the value of a schedule at a step.

    Args:
        value: a number, or a schedule. A function gets the step in float32.
        step: the optimizer's iterations, a scalar.
    """
    if not is_schedule(value):
        return value
    if not isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        # TensorFlow would refuse `1.5 * step` of an integer.
        step = ops.cast(step, "float32")
    return ops.cast(ops.convert_to_tensor(value(step)), "float32")


def product_at(weights, moment):
    """Return the product of numbers, schedules and variables at a moment."""
    product = 1.0
    for weight in weights:
        if isinstance(weight, keras.Variable):
            weight = moment.values[id(weight)]
        product = product * value_at(weight, moment.step)
    return product


def complement(value):
    """Return `1 - value` of a number or a schedule."""
    if is_schedule(value):
        return lambda step: 1.0 - value_at(value, step)
    return 1.0 - value


def is_zero(value):
    """Tell whether `value` is the number 0, whatever the step."""
    return isinstance(value, (int, float)) and value == 0


def serialize(value):
    """Return a config of a number or a schedule."""
    if is_schedule(value):
        return keras.saving.serialize_keras_object(value)
    return value


def deserialize(config):
    """Return what `serialize` was given."""
    if isinstance(config, dict):
        return keras.saving.deserialize_keras_object(config)
    return config


def copied(thing):
    """Return a shallow copy; `copy.copy` of a Keras object goes by its config,
    which a tensor is no part of.
    """
    copy = object.__new__(type(thing))
    copy.__dict__.update(thing.__dict__)
    return copy


class Controlled:
    """Base of objects whose numbers may be schedules.

    Numbers, strings and schedules can't be assigned a second time: compiled
    steps hold them, so that a change would be ignored without a word.
    """

    # Names of the attributes that may be schedules.
    controls = ()

    # Names of further attributes that can't be assigned a second time.
    fixed = ()

    def __setattr__(self, name, value):
        held = self.__dict__.get(name)
        is_fixed = isinstance(held, (int, float, str)) or name in (
            *self.controls,
            *self.fixed,
        )
        if name in self.__dict__ and is_fixed and not name.startswith("_"):
            kind = type(self).__name__
            raise AttributeError(
                f"`{name}` of a {kind} can't change: compiled training steps "
                f"hold it. Received: {name}={value!r}. To change it during "
                "`fit()`, give a schedule when you make the object: a "
                "keras.optimizers.schedules.LearningRateSchedule, or a "
                "function of the step. To change it between two fits, make a "
                f"new {kind} and call `compile()` again."
            )
        super().__setattr__(name, value)

    @property
    def has_schedules(self):
        """Whether a number of this object depends on the step."""
        return any(is_schedule(getattr(self, name)) for name in self.controls)

    def at(self, step):
        """Return this object as it is at a step: schedules become numbers.

        Args:
            step: the optimizer's iterations, a scalar.
        """
        if not self.has_schedules:
            return self
        evaluated = copied(self)
        for name in self.controls:
            value = value_at(getattr(self, name), step)
            object.__setattr__(evaluated, name, value)
        return evaluated

    def scheduled_values(self, step):
        """Return the value of each schedule at a step, by attribute name."""
        return {
            name: value_at(getattr(self, name), step)
            for name in self.controls
            if is_schedule(getattr(self, name))
        }
