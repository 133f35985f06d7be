"""What LiteRT's converter says, in a sentence or two."""

import re

from keras_distill.compression._models import layers_of

# In screens of MLIR: the place of an operation, then what it is.
_MISSING = re.compile(
    r'fused\["\w+:", "([^"@]*).*?\'tf\.(\w+)\' op is neither a custom op'
)
_UNKNOWN = re.compile(r"'tf\.(\w+)' op is neither a custom op")
_LONGEST = 300


def explain(message, model):
    """Return what stands in the way of a model.

    Args:
        message: of the converter.
        model: the model that it was given.
    """
    missing = {
        operation: layer_of(place, model)
        for place, operation in _MISSING.findall(message)
    }
    missing = dict.fromkeys(_UNKNOWN.findall(message)) | missing
    if missing:
        named = [
            f"{operation!r}" + (f" (in the layer {layer!r})" if layer else "")
            for operation, layer in missing.items()
        ]
        return (
            f"LiteRT has no operation for TensorFlow's {', '.join(named)}. "
            "Build the model with another layer in that place (such as a "
            "convolution with strides for a pooling that LiteRT lacks), or "
            "export the part before it, and compute the rest yourself."
        )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    first = lines[0] if lines else "no message"
    if len(first) > _LONGEST:
        first = f"{first[:_LONGEST]}..."
    return f"LiteRT's converter did not take the model. It says: {first}"


def layer_of(place, model):
    """Return the name of the layer that an operation belongs to, or None.

    Args:
        place: such as `"model_1/conv_1/convolution"`: names of layers, and what
            TensorFlow puts behind a name that was taken. (A layer that is
            called takes its name twice.)
        model: the model in which to look.
    """
    known = {layer.name for layer in layers_of(model)}
    for part in place.split("/"):
        for name in (re.sub(r"_\d+$", "", part), part):
            if name in known:
                return name
    return None
