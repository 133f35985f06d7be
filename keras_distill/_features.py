"""What inner layers return, collected while their model runs as usual.

Left out: a second model that shares the layers and has more outputs. It can't
look into nested or subclassed models, and calling it beside the first one runs
the layers twice, which moves BatchNorm statistics twice.
"""

import contextlib
import contextvars
import difflib
import functools
import threading

import keras

# What is being collected here and now: replicas of a distribution strategy are
# threads that take turns in the middle of a forward pass.
_collected = contextvars.ContextVar("collected", default=None)
_lock = threading.Lock()
_taps = {}  # id of a layer -> how many blocks collect from it

# Quantized layers run the second of the two.
_METHODS = ("call", "quantized_call")


def find_layer(model, path, argument):
    """Return the layer at `path`, such as `"backbone/block_2/conv"`.

    Args:
        model: the model to look in.
        path: names of nested layers, joined by `/`, without the model's own.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: if there is no such layer; with what comes close.
    """
    layer = model
    for name in path.split("/"):
        matches = [child for child in _children(layer) if child.name == name]
        if not matches:
            close = _paths_like(model, path)
            hint = f" Did you mean {close}?" if close else ""
            raise ValueError(
                f"There is no layer `{argument}`={path!r} in the model "
                f"{model.name!r}: {layer.name!r} has no layer {name!r}.{hint} "
                "Layers of nested models are named by path, as in "
                "'backbone/conv_1'."
            )
        layer = matches[0]
    return layer


def _children(layer):
    return layer._flatten_layers(include_self=False, recursive=False)


def _paths_like(model, path):
    """Return paths that end in the same name, or else look like `path`."""
    paths = []

    def walk(layer, prefix):
        for child in _children(layer):
            paths.append(prefix + child.name)
            walk(child, f"{prefix}{child.name}/")

    walk(model, "")
    name = path.rsplit("/", 1)[-1]
    same = [p for p in paths if p.rsplit("/", 1)[-1] == name]
    return same[:5] or difflib.get_close_matches(path, paths, n=5, cutoff=0.5)


@contextlib.contextmanager
def collecting(layers):
    """Collect what `layers` return while the block runs their model.

    Args:
        layers: list of layers; the caller finds them as they were afterwards.

    Yields:
        A function without arguments. At the end of the block it returns one
        output per layer.

    Raises:
        ValueError: from that function, if a layer did not run exactly once.
    """
    collected = {id(layer): [] for layer in layers}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_tapped(layer))
        token = _collected.set(collected)
        stack.callback(_collected.reset, token)
        yield lambda: [_only(layer, collected[id(layer)]) for layer in layers]


def _only(layer, outputs):
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
        collected = _collected.get()
        if collected is not None and id(layer) in collected:
            collected[id(layer)].append(outputs)
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
