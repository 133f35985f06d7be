"""The operations that a LiteRT file computes in floats."""

import collections

import keras

from keras_distill.compression._models import layers_of
from keras_distill.compression.litert._converter_errors import layer_of

# Operations that scale the inputs, which are floats, are not reported.
_SCALING = ("ADD", "CAST", "DIV", "MUL", "RESHAPE", "SUB")
# These operations compute nothing.
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
    "LiteRT has no ranges inside loops, so loops such as recurrent layers "
    "compute in floats"
)
_UNKNOWN = "`quantize_aware` does not round inside some layers"
_NO_KERNEL = "LiteRT has no int8 form of some operations"


def notes_on(content: bytes, model: keras.Model, aware: bool) -> list[str]:
    """Return sentences about the operations of an int8 file in float32.

    Args:
        content: the bytes of the file.
        model: the model in the file, for the names of its layers.
        aware: whether its ranges come from `quantize_aware`.
    """
    floats, count = operations_in_floats(content)
    if not floats:
        return []
    layers_of_operation: dict = collections.defaultdict(dict)
    reasons: dict[str, None] = {}
    for operation, tensor in floats:
        layer = layer_of(tensor.split(";")[0], model)
        layers_of_operation[operation][layer] = None
        reasons[_reason(operation, layer, model, aware)] = None
    named = [
        operation + _in_layers([layer for layer in layers if layer])
        for operation, layers in layers_of_operation.items()
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


def operations_in_floats(
    content: bytes,
) -> tuple[list[tuple[str, str]], int]:
    """Return `([(operation, name of its output)], number of operations)`.

    Operations that scale the inputs or only move values are not in the list.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    kinds = {v: k for k, v in vars(schema.BuiltinOperator).items()}
    found = []
    # Tensors that are inputs of the file, or scaled inputs.
    raw = set(graph.inputs)
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
