"""Every private name of Keras that this package uses, with its reason.

Imported from `keras.src`. If a release moves them, the import fails here:

- `get_keras_mask`, `set_keras_mask`: Keras keeps a mask beside its tensor. Its
  losses and metrics read it there, and there is no public function that does.
  Without them, hints and batch statistics would count padding.

Attributes, used through the functions below:

- the state of a JAX step: a tuple of lists of values, whose order is private.
  Views and teacher metrics could not be updated inside a compiled step.
- `Model._jax_state_synced`: says that variables hold the values of the state.
  Without it, a failed first step would leave the student without weights.
- `Model._initial_epoch`: the epoch at which `fit()` begins. Without it, no
  callback could continue a run.
- `GLOBAL_SEED_GENERATOR` of `keras.src.random.seed_generator`: where Keras
  keeps the generator of layers without one.
- the local variables `epoch_iterator` and `callbacks` of `fit()`, and of an
  epoch iterator `_enumerate_iterator`, `_num_batches`, `_get_iterator`,
  `_distributed_dataset` and `data_adapter` (`resuming/`). Without them, a
  resumed run would read other data.
- `saving_lib.H5IOStore` and `saving_lib._save_state`: what `save_weights`
  consists of. Without them, a full disk would crash a run.
- `Variable._validate_shape`: Keras calls it before a variable takes memory.
  Without it, a small file could describe a model that takes all memory.
- `Metric._direction`: whether a higher value is better. Without it, users would
  have to say by which direction `shrink` chooses (`shrinking/_score.py`).
- `Model._compile_metrics`: the metrics that compare with labels. Without it,
  unlabelled data would log metrics that were never updated.

Methods that `Distiller` overrides (`distiller/_distiller.py`):

- `Model._symbolic_build`: Keras builds metrics and optimizers on a batch. The
  Distiller passes it the view. Without it, Keras would build the student for
  the size of the images before the crop.
- `Model._maybe_symbolic_build`: TensorFlow calls it before the callbacks.
  Without it, callbacks such as `BackupAndRestore` would find no weights, and
  `MultiWorkerMirroredStrategy` would fail on the first batch (keras#20585).
  It reads `Model._distribute_strategy`: the strategy of the scope in which the
  model was created, or `None`.
- `Model.train_function`, `Model.test_function`: the compiled steps, which
  `make_train_function` and `make_test_function` assign. Without them, teacher
  weights would be constants of the steps, and values would not be checked
  (also used in `distiller/_compiled_steps.py`).

Attributes that many files read:

- `Layer._flatten_layers`: all layers inside a layer, in the order of saving
  (`_graphs/_layers.py`, `_graphs/_copier.py`, `teachers/_precision.py`,
  `teachers/_torch_modules.py`, `distiller/_model_checks.py`,
  `distiller/_warnings.py`, and in `compression` `packing/_assets.py`, `litert/`
  and `weights/_weight_selection.py`). Without it, layers inside nested layers
  would be missed.
- `KerasTensor._keras_history`, `Operation._inbound_nodes`: which layer returned
  a tensor, and what it was called with (`_graphs/_walk.py`,
  `_graphs/_copier.py`, `_graphs/_outputs.py`). Without them, no layer of a
  model could be replaced, and the last activation would be unknown.
- `Node.operation`, `.arguments`, `.input_tensors`, `.outputs`, `.is_input`: one
  call of a layer (`_graphs/`, `compression/channels/`).
- Of optimizers `_variables`, `_track_variable`, `_trainable_variables`,
  `_model_variables_moving_average`: state inside a compiled step
  (`compression/weights/_optimizer_hook.py`). Without them, zeros and shared
  values would be constants of the step. Its methods `apply`,
  `save_own_variables` and `load_own_variables` are replaced during `fit()`.
- `Optimizer._get_variable_index`: custom optimizers find their slots with it
  (`compression/channels/_taylor_scores.py`).
- Of `MultiHeadAttention` `_compute_attention`, `_masked_softmax`,
  `_dropout_layer` and the inner projections: rounding inside attention
  (`compression/litert/_quantized_blocks.py`).

Behaviour that is not documented:

- `type(model).call.__qualname__` is `"Functional.call"` or `"Sequential.call"`
  if the graph is all that a model computes (`_graphs/_walk.py`).
- Operations have no public class, so they are recognised by the names of their
  classes (`_graphs/_elementwise.py`, `_graphs/_macs.py`). An unknown operation
  keeps all channels, and its costs are unknown.
- The state of a random generator is a variable named `"seed_generator_state"`
  (`compression/packing/_words.py`).
- `History` is the last callback that runs
  (`compression/weights/_sparsity_warnings.py`).
- A layer looks up `call` and `quantized_call` on the instance, so both can be
  wrapped for one forward pass (`_graphs/_features.py`).
- Epoch iterators yield `(begin, end, batches)` (`_backend.py:first_batch`).
- Serialized dtype policies have the class name `"DTypePolicy"`
  (`recording/_manifest.py`, `teachers/_precision.py`).
"""

import contextlib
import io
import math

import keras
from keras.src.backend import get_keras_mask
from keras.src.backend import set_keras_mask
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.saving import saving_lib

__all__ = [
    "build_for",
    "compiled_label_metrics",
    "get_keras_mask",
    "global_seed_state",
    "is_better_if_higher",
    "jax_state_is_in_variables",
    "limited_variables",
    "random_states",
    "running_fit",
    "set_initial_epoch",
    "set_keras_mask",
    "variables_of_jax_state",
    "weights_file",
    "with_keras_mask",
]


def with_keras_mask(tensor, mask):
    """Return the tensor with this mask, or unchanged for `None`."""
    if mask is not None and get_keras_mask(tensor) is None:
        set_keras_mask(tensor, mask)
    return tensor


def compiled_label_metrics(model):
    """Return the metric that holds those given to `compile()`, or `None`."""
    return model._compile_metrics


def variables_of_jax_state(model, state):
    """Return the variables whose values are in the state of a JAX step.

    Args:
        model: the model that owns the step.
        state: tuple of lists of values. Only a training step has the state of
            the optimizer.

    Returns:
        A list of lists of variables, in the order of `state`: trainable,
        non-trainable, those of the optimizer, those of metrics.
    """
    groups = [
        model.trainable_variables,
        model.non_trainable_variables,
        model.metrics_variables,
    ]
    if len(state) == 4:
        groups.insert(2, model.optimizer.variables)
    return groups


def jax_state_is_in_variables(model):
    """Tell Keras that the model's variables hold the current state."""
    model._jax_state_synced = True


def running_fit(frame, required=True):
    """Return `(epoch_iterator, callback_list)` of the `fit()` that runs.

    Args:
        frame: the frame of a function that `fit()` called.
        required: bool. Whether to raise if there is none, or return `None`.

    Raises:
        RuntimeError: if no `fit()` of Keras runs.
    """
    while frame is not None:
        names = frame.f_locals
        callbacks = names.get("callbacks")
        if "epoch_iterator" in names and isinstance(
            callbacks, keras.callbacks.CallbackList
        ):
            return names["epoch_iterator"], callbacks
        frame = frame.f_back
    if required:
        raise RuntimeError(
            "`Resume` works in the `fit()` of a Keras model. Received: a call "
            "from another training loop, whose data it cannot restore."
        )
    return None


def set_initial_epoch(model, epoch):
    """Set the epoch at which `fit()` begins; `None` for its argument."""
    model._initial_epoch = epoch


def build_for(model, epoch_iterator):
    """Build a model, its metrics and optimizer for the data of its `fit()`.

    On TensorFlow, the first step does it; on other backends, `fit()` did.
    """
    if keras.backend.backend() == "tensorflow":
        dataset = epoch_iterator.data_adapter.get_tf_dataset()
        with model.distribute_strategy.scope():
            model._symbolic_build(data_batch=dataset.element_spec)
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)


def weights_file(model):
    """Return the bytes of the file that `model.save_weights` would write.

    HDF5 crashes the process if a disk is full while it writes.
    """
    file = io.BytesIO()
    store = saving_lib.H5IOStore(file, mode="w")
    saving_lib._save_state(
        model,
        weights_store=store,
        assets_store=None,
        inner_path="",
        visited_saveables=set(),
    )
    store.close()
    return file.getvalue()


def random_states(model):
    """Return the states of a model's random generators, in a fixed order."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def global_seed_state():
    """Return the state of Keras's global random generator, if it exists."""
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return None if generator is None else generator.state


@contextlib.contextmanager
def limited_variables(limit):
    """Raise before the variables that are made in a block take memory.

    Args:
        limit: the largest number of values that all of them may have.

    Raises:
        ValueError: in the block, when a variable exceeds the limit.
    """
    validate, total = keras.Variable._validate_shape, 0

    def validate_and_count(variable, shape):
        nonlocal total
        shape = validate(variable, shape)
        total += math.prod(shape)
        if total > limit:
            raise ValueError(
                f"The file is too small for the model that it describes: "
                f"{total} weights or more. Expected: at most {limit}."
            )
        return shape

    keras.Variable._validate_shape = validate_and_count
    try:
        yield
    finally:
        keras.Variable._validate_shape = validate


def is_better_if_higher(metric: keras.Metric) -> bool | None:
    """Return whether a higher value of a metric is better, if Keras knows."""
    direction = getattr(metric, "_direction", None)
    return None if direction is None else direction == "up"
