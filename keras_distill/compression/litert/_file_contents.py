"""What a LiteRT file computes in floats, read from the file."""

import collections

from keras_distill.compression._models import layers_of
from keras_distill.compression.litert._converter_errors import layer_of

# Pixels come as floats: what scales them is no part of the network.
_SCALING = ("ADD", "CAST", "DIV", "MUL", "RESHAPE", "SUB")
# These compute nothing.
_MOVING = (
    "CONCATENATION",
    "DEQUANTIZE",
    "EXPAND_DIMS",
    "PACK",
    "RESHAPE",
    "REVERSE_V2",
    "SLICE",
    "SPLIT",
    "SPLIT_V",
    "SQUEEZE",
    "STRIDED_SLICE",
    "TRANSPOSE",
    "UNPACK",
)
_LOOP = (
    "LiteRT has ranges for no loop, so what is in it, such as a recurrent "
    "layer, computes in floats"
)
_UNKNOWN = "`quantize_aware` does not round inside of some layers"
_NO_KERNEL = "LiteRT has no int8 form of some operations"


def notes_on(content, model, aware):
    """Return a list of sentences on what an int8 file has in float32.

    Args:
        content: the bytes of the file.
        model: the model in it, for the names of its layers.
        aware: whether its ranges are those of `quantize_aware`.
    """
    floats, count = operations_in_floats(content)
    if not floats:
        return []
    places, reasons = collections.defaultdict(dict), {}
    for operation, tensor in floats:
        layer = layer_of(tensor.split(";")[0], model)
        places[operation][layer] = None
        reasons[_reason(operation, layer, model, aware)] = None
    named = [
        operation + _in_layers([layer for layer in layers if layer])
        for operation, layers in places.items()
    ]
    return [
        f"{len(floats)} of {count} operations in the int8 file compute in "
        f"float32: {', '.join(named)}. {'; '.join(reasons)}."
    ]


def _reason(operation, name, model, aware):
    if operation == "WHILE":
        return _LOOP
    for layer in layers_of(model):
        if layer.name == name and hasattr(layer, "why_floats"):
            return layer.why_floats
    return _UNKNOWN if aware else _NO_KERNEL


def _in_layers(names):
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})"


def operations_in_floats(content):
    """Return `([(operation, name of its output)], number of operations)`.

    What scales the inputs is not in the list, nor is what only moves numbers.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    kinds = {v: k for k, v in vars(schema.BuiltinOperator).items()}
    found, raw = [], set(graph.inputs)
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        results = [graph.tensors[index] for index in operator.outputs]
        is_float = any(t.type == schema.TensorType.FLOAT32 for t in results)
        if not is_float:
            continue
        variable = [
            index
            for index in operator.inputs
            if model.buffers[graph.tensors[index].buffer].data is None
        ]
        if kind in _SCALING and raw.issuperset(variable):
            raw.update(operator.outputs)
        elif kind not in _MOVING:
            found.append((kind, results[0].name.decode()))
    return found, len(graph.operators)
