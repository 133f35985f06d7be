"""Captures the outputs of inner layers while their model runs.

Left out: a second model that shares the layers and has more outputs. It cannot
reach layers inside nested or subclassed models. Calling it beside the first
model would run the layers twice, and update BatchNorm statistics twice.
"""

import contextlib
import contextvars
import functools
import threading

import keras

# The outputs captured so far. A context variable, because the replicas of a
# distribution strategy are threads that alternate within a forward pass.
_captured = contextvars.ContextVar("captured", default=None)
_lock = threading.Lock()
_taps: dict = {}  # id of a layer -> number of blocks that capture from it

# Quantized layers run `quantized_call` instead of `call`.
_METHODS = ("call", "quantized_call")


@contextlib.contextmanager
def capturing(layers):
    """Capture the outputs of layers while the block runs their model.

    Args:
        layers: list of layers. They are restored at the end of the block.

    Yields:
        A function without arguments. After the model ran, it returns one output
        per layer. It raises a ValueError if a layer did not run exactly once.
    """
    captured = {id(layer): [] for layer in layers}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_tapped(layer))
        token = _captured.set(captured)
        stack.callback(_captured.reset, token)
        yield lambda: [_single(layer, captured[id(layer)]) for layer in layers]


def _single(layer, outputs):
    if len(outputs) != 1 or keras.tree.is_nested(outputs[0]):
        what = "several tensors" if len(outputs) == 1 else "no single output"
        raise ValueError(
            f"A hint needs a layer that runs once and returns one tensor. "
            f"Received: {layer.name!r}, which ran {len(outputs)} times and "
            f"returned {what}."
        )
    return outputs[0]


@contextlib.contextmanager
def _tapped(layer):
    with _lock:
        _taps[id(layer)] = _taps.get(id(layer), 0) + 1
        if _taps[id(layer)] == 1:
            for method in _METHODS:
                if hasattr(layer, method):
                    # `setattr` would let Keras and PyTorch track it.
                    object.__setattr__(layer, method, _tap(layer, method))
    try:
        yield
    finally:
        with _lock:
            _taps[id(layer)] -= 1
            if not _taps[id(layer)]:
                del _taps[id(layer)]
                for method in _METHODS:
                    if method in vars(layer):
                        object.__delattr__(layer, method)


def _tap(layer, method):
    function = getattr(layer, method)

    @functools.wraps(function)
    def tap(*args, **kwargs):
        outputs = function(*args, **kwargs)
        captured = _captured.get()
        if captured is not None and id(layer) in captured:
            captured[id(layer)].append(outputs)
        return outputs

    return tap


class _Probe(keras.Operation):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.error = None

    def call(self, inputs):
        try:
            return self.function(inputs)
        except Exception as error:
            self.error = error
            raise


def output_spec(function, inputs):
    """Return symbolic outputs of `function(inputs)` without computing them."""
    probe = _Probe(function)
    try:
        return probe.compute_output_spec(inputs)
    except Exception:
        if probe.error is None:
            raise
        # Keras would report an error in `_Probe`, which users do not know.
        raise probe.error from None


def specs_of(structure):
    """Return symbolic tensors like those of a structure; `None` stays."""

    def spec(value):
        if value is None:
            return None
        dtype = keras.backend.standardize_dtype(value.dtype)
        return keras.KerasTensor(value.shape, dtype)

    return keras.tree.map_structure(spec, structure)
