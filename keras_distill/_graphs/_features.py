"""What inner layers return, captured while their model runs as usual.

Left out: a second model that shares the layers and has more outputs. It can't
look into nested or subclassed models, and calling it beside the first one runs
the layers twice, which moves BatchNorm statistics twice.
"""

import contextlib
import contextvars
import functools
import threading

import keras

# What is being captured here and now: replicas of a distribution strategy are
# threads that take turns in the middle of a forward pass.
_captured = contextvars.ContextVar("captured", default=None)
_lock = threading.Lock()
_taps = {}  # id of a layer -> how many blocks collect from it

# Quantized layers run the second of the two.
_METHODS = ("call", "quantized_call")


@contextlib.contextmanager
def capturing(layers):
    """Collect what `layers` return while the block runs their model.

    Args:
        layers: list of layers; the caller finds them as they were afterwards.

    Yields:
        A function without arguments. At the end of the block it returns one
        output per layer.

    Raises:
        ValueError: from that function, if a layer did not run exactly once.
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
                    # Past Keras and PyTorch, which would track the attribute.
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
        # Keras words it as a mistake in an operation that nobody wrote.
        raise probe.error from None


def specs_of(structure):
    """Return symbolic tensors like those of a structure, `None` as it is."""

    def spec(value):
        if value is None:
            return None
        dtype = keras.backend.standardize_dtype(value.dtype)
        return keras.KerasTensor(value.shape, dtype)

    return keras.tree.map_structure(spec, structure)
