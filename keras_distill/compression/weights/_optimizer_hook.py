"""A hook that corrects weights inside each training step, during one `fit()`.

Weights change in one place: `optimizer.apply`. The compiled step of all three
backends can read no other state there than the optimizer's own variables. A
plain array would become a constant, and on JAX a layer's variable is outside
the optimizer's scope. So during `fit()`, the user's optimizer object has a
replaced `apply` and additional variables in its list of variables.

Two other designs were rejected: an optimizer that wraps the user's, and a
subclass that replaces its class. Both would be part of each checkpoint. With
this hook, files written during `fit()` are the same as without it, and can be
loaded with and without it.
"""

import contextlib
from collections.abc import MutableMapping
from typing import Any
from typing import Protocol

import keras

from keras_distill._typing import Tensor

# The attribute of the optimizer that has the hook.
_HOOK = "_keras_distill_hook"
_FILE_METHODS = ("save_own_variables", "load_own_variables")


class KeptValues(Protocol):
    """What an `OptimizerHook` keeps in one weight."""

    weight: keras.Variable

    def before_step(self, gradient: Tensor) -> tuple[Tensor, Any]:
        """Return the gradient for the optimizer, and what `after_step` needs.

        The object must not hold this: on TensorFlow, several replicas compute
        their steps side by side.
        """

    def after_step(self, before: Any) -> None:
        """Correct the weight after the optimizer has changed it."""


class OptimizerHook:
    """Replaces `apply` of a model's optimizer until `remove()`.

    Args:
        callback: the callback that installs the hook, when `fit()` begins.

    Attributes:
        kept: list of `KeptValues`. Set it before `compile()`.
        chosen: what the callback has chosen for them so far. The callback must
            not hold this itself: `Resume` restores the attributes of callbacks,
            but the hook of a resumed run is new.

    Raises:
        ValueError: if another callback of the same `fit()` has a hook.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        model = callback.model
        outer = model.optimizer
        # The `apply` of a LossScaleOptimizer is not always run: it skips steps
        # with infinite gradients.
        self.optimizer = getattr(outer, "inner_optimizer", outer)
        self.run = callback.params  # one object for all callbacks of a `fit()`
        self.model = model
        self.kept: list[KeptValues] = []
        self.chosen: Any = None
        if not outer.built:
            outer.build(model.trainable_variables)
        previous = vars(self.optimizer).get(_HOOK)
        if previous is not None:
            previous.refuse_the_same_run(self.run)
            previous.remove()  # left behind by a `fit()` that was interrupted
        self.state: list[keras.Variable] = []
        self._own_variables = vars(self.optimizer)["_variables"]
        self._trained = list(model.trainable_variables)
        self._outer = outer
        self._replace_methods()

    def refuse_the_same_run(self, run: dict[str, Any]) -> None:
        """Raise a ValueError if this hook belongs to the same `fit()`."""
        if self.run is run:
            raise ValueError(
                "A `fit()` can have only one of the callbacks "
                "`MagnitudePruning`, `WeightSharing` and `KeepCompressed`. "
                "Received: two of them. Prune in one `fit()`, share weights in "
                "the next one (the zeros are kept), and continue with "
                "`KeepCompressed()` only."
            )

    def add_state(
        self, reference: keras.Variable, name: str, dtype: str
    ) -> keras.Variable:
        """Return a new variable of zeros that the compiled step can read.

        Args:
            reference: a weight, whose shape and layout the variable gets.
            name: str, the name of the new variable.
            dtype: str, its dtype.
        """
        attributes = vars(self.optimizer)
        # TensorFlow cannot write a checkpoint of a list that lost an entry. So
        # the optimizer's own list stays as it is, and another list replaces it.
        attributes["_track_variable"] = self.state.append
        strategy = getattr(self.model, "distribute_strategy", None)
        with strategy.scope() if strategy else contextlib.nullcontext():
            variable = self.optimizer.add_variable(
                shape=reference.shape,
                dtype=dtype,
                layout=getattr(reference, "_layout", None),
                name=name,
            )
        del attributes["_track_variable"]
        attributes["_variables"] = [*self._own_variables, *self.state]
        return variable

    def averages_of(self, weight: keras.Variable) -> list[keras.Variable]:
        """Return the moving averages that the optimizer has of a weight."""
        several = getattr(self.optimizer, "optimizers", [self.optimizer])
        return [
            average
            for optimizer in several
            if optimizer.use_ema and optimizer.built
            for variable, average in zip(
                optimizer._trainable_variables,
                optimizer._model_variables_moving_average,
            )
            if variable is weight
        ]

    def compile(self) -> None:
        """Compile the training step again, after all state was added."""
        self.model.make_train_function(force=True)

    def remove(self) -> None:
        """Restore the optimizer."""
        vars(self.optimizer)["_variables"] = self._own_variables
        for optimizer in (self.optimizer, self._outer):
            for name in ("apply", _HOOK, *_FILE_METHODS):
                if name in vars(optimizer):
                    delattr(optimizer, name)
        self.model.train_function = None

    def _replace_methods(self):
        setattr(self.optimizer, _HOOK, self)
        self.optimizer.apply = self._apply
        # Both save the variables of the inner optimizer.
        for optimizer in {
            id(o): o for o in (self.optimizer, self._outer)
        }.values():
            optimizer.save_own_variables = _saving(optimizer, self.state)
            optimizer.load_own_variables = _loading(optimizer, self.state)

    def _apply(
        self,
        grads: list[Tensor],
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        variables = trainable_variables
        if variables is None:
            variables = self._trained
        grads = list(grads)
        positions = {id(v): i for i, v in enumerate(variables)}
        before = []
        for kept in self.kept:
            position = positions[id(kept.weight)]
            grads[position], values = kept.before_step(grads[position])
            before.append(values)
        type(self.optimizer).apply(self.optimizer, grads, trainable_variables)
        for kept, values in zip(self.kept, before):
            kept.after_step(values)


def _saving(optimizer, state):
    """Return a `save_own_variables` without the hook's variables."""

    def save_own_variables(store: MutableMapping[str, Any]) -> None:
        values: dict[str, Any] = {}
        type(optimizer).save_own_variables(optimizer, values)
        for key in list(values)[: len(values) - len(state)]:
            store[key] = values[key]

    return save_own_variables


def _loading(optimizer, state):
    """Return a `load_own_variables` that leaves the hook's variables alone."""

    def load_own_variables(store: MutableMapping[str, Any]) -> None:
        values = {key: store[key] for key in store.keys()}
        for index, variable in enumerate(state, len(values)):
            values[str(index)] = keras.ops.convert_to_numpy(variable)
        type(optimizer).load_own_variables(optimizer, values)

    return load_own_variables
