"""Short explanations of the errors of LiteRT's converter."""

import re

import keras

from keras_distill.compression._models import layers_of

# In long MLIR messages: the name of an operation, then its kind.
_MISSING = re.compile(
    r'fused\["\w+:", "([^"@]*).*?\'tf\.(\w+)\' op is neither a custom op'
)
_UNKNOWN = re.compile(r"'tf\.(\w+)' op is neither a custom op")
_MAX_LENGTH = 300


def explain(message: str, model: keras.Model) -> str:
    """Return the reason why a model cannot be converted.

    Args:
        message: the converter's message.
        model: the model.
    """
    missing: dict[str, str | None] = dict.fromkeys(_UNKNOWN.findall(message))
    for name, operation in _MISSING.findall(message):
        missing[operation] = layer_of(name, model)
    if missing:
        named = [
            f"{operation!r}" + (f" (in the layer {layer!r})" if layer else "")
            for operation, layer in missing.items()
        ]
        return (
            f"LiteRT has no operation for TensorFlow's {', '.join(named)}. "
            "Replace this layer (for example, an unsupported pooling by a "
            "convolution with strides), or export the part of the model before "
            "it and compute the rest outside of the file."
        )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    first = lines[0] if lines else "no message"
    if len(first) > _MAX_LENGTH:
        first = f"{first[:_MAX_LENGTH]}..."
    return f"LiteRT cannot convert the model. Its converter reports: {first}"


def layer_of(operation: str, model: keras.Model) -> str | None:
    """Return the name of the layer that an operation belongs to, or None.

    Args:
        operation: the name of an operation, such as
            `"model_1/conv_1/convolution"`. It consists of layer names, to which
            TensorFlow adds a number if a name is taken (calling a layer takes
            its name a second time).
        model: the model with the layer.
    """
    known = {layer.name for layer in layers_of(model)}
    for part in operation.split("/"):
        for name in (re.sub(r"_\d+$", "", part), part):
            if name in known:
                return name
    return None
