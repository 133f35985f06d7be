"""What a callback puts around an optimizer for one `fit()`, and takes away.

Weights change in one place, the optimizer's `apply`, and of all state only the
optimizer's own variables can be read there in the compiled step of every
backend: a plain array would become a constant of it, and on JAX a layer's
variable lies outside the optimizer's scope. So during `fit()` the user's
optimizer, the very object, has an `apply` of ours, and variables of ours among
its own.

Left out: a wrapping optimizer, and a subclass put in place of the class. Both
would be in every checkpoint. What is written during `fit()` is what the
optimizer would write without a hook, and can be read with one and without one.
"""

import contextlib

import keras


class OptimizerHook:
    """Wraps the `apply` of a model's optimizer.

    Args:
        callback: the callback that installs it, at the beginning of `fit()`.

    Attributes:
        held: list of `Zeros` and `Clusters`, whose gradients and weights the
            steps change that are compiled afterwards.

    Raises:
        ValueError: if another callback of the same `fit()` has a hook.
    """

    def __init__(self, callback):
        model = callback.model
        outer = model.optimizer
        # A LossScaleOptimizer applies nothing itself, and skips bad steps.
        self.optimizer = getattr(outer, "inner_optimizer", outer)
        self.run = callback.params  # one object for all callbacks of a `fit()`
        self.model, self.held = model, []
        if not outer.built:
            outer.build(model.trainable_variables)
        previous = vars(self.optimizer).get(_HOOK)
        if previous is not None:
            previous.refuse_the_same_run(self.run)
            previous.remove()  # left behind by a `fit()` that was interrupted
        self.state = []
        self._own = vars(self.optimizer)["_variables"]
        self._trained = list(model.trainable_variables)
        self._outer = outer
        self._replace()

    def refuse_the_same_run(self, run):
        if self.run is run:
            raise ValueError(
                "Two callbacks of one `fit()` want to hold the weights. Prune "
                "in one `fit()`, share weights in the next, which keeps the "
                "zeros, and train on with `KeepCompressed()` alone."
            )

    def add_state(self, reference, name, dtype):
        """Return a new variable of zeros that `after` may read.

        Args:
            reference: the weight that it belongs to, whose shape it has.
            name: str, the name of the new variable.
            dtype: its dtype.
        """
        attributes = vars(self.optimizer)
        # TensorFlow's checkpoints refuse a list of variables that lost one. So
        # the list of its own is set aside, and another one takes its place.
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
        attributes["_variables"] = [*self._own, *self.state]
        return variable

    def averages_of(self, weight):
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

    def compile(self):
        """Have the step compiled anew, now that all state is there."""
        self.model.make_train_function(force=True)

    def remove(self):
        """Give the optimizer back as it was."""
        vars(self.optimizer)["_variables"] = self._own
        for optimizer in (self.optimizer, self._outer):
            for name in ("apply", _HOOK, *_FILES):
                if name in vars(optimizer):
                    delattr(optimizer, name)
        self.model.train_function = None

    def _replace(self):
        setattr(self.optimizer, _HOOK, self)
        self.optimizer.apply = self._apply
        # Both write the variables of the inner one.
        for optimizer in {
            id(o): o for o in (self.optimizer, self._outer)
        }.values():
            optimizer.save_own_variables = _saving(optimizer, self.state)
            optimizer.load_own_variables = _loading(optimizer, self.state)

    def _apply(self, grads, trainable_variables=None):
        variables = trainable_variables
        if variables is None:
            variables = self._trained
        grads, places = list(grads), {id(v): i for i, v in enumerate(variables)}
        for held in self.held:
            place = places[id(held.weight)]
            grads[place] = held.with_sum(grads[place])
        type(self.optimizer).apply(self.optimizer, grads, trainable_variables)
        for held in self.held:
            held.hold()


_HOOK = "_keras_distill_hook"
_FILES = ("save_own_variables", "load_own_variables")


def _saving(optimizer, state):
    def save_own_variables(store):
        values = {}
        type(optimizer).save_own_variables(optimizer, values)
        for key in list(values)[: len(values) - len(state)]:
            store[key] = values[key]

    return save_own_variables


def _loading(optimizer, state):
    def load_own_variables(store):
        values = {key: store[key] for key in store.keys()}
        for index, variable in enumerate(state, len(values)):
            values[str(index)] = keras.ops.convert_to_numpy(variable)
        type(optimizer).load_own_variables(optimizer, values)

    return load_own_variables
