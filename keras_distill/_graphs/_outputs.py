"""The outputs of a model: their structure, and their last activations."""

import keras
from keras import tree

# Layers that move or copy values without changing them.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.RepeatVector,
)


def output_paths(outputs):
    """Return the path of each output: `()` for one, `(0,)`, `("a",)`, ..."""
    return [tuple(path) for path, _ in tree.flatten_with_path(outputs)]


def per_output(config, paths, names, argument):
    """Return the value of a `compile()` argument for each output.

    Args:
        config: one value for all outputs, or a list or dict of values in the
            structure of the outputs, or a dict by output name.
        paths: the path of each output, as `output_paths` returns them.
        names: the names of the outputs in the same order, or `None`.
        argument: the name of the argument, for messages.

    Returns:
        A list with the value of each output, `None` where it has none.

    Raises:
        ValueError: if `config` does not fit the outputs.
    """
    if not tree.is_nested(config) or paths == [()]:
        return [config] * len(paths)
    if names is None or len(names) != len(paths):
        names = [path[-1] for path in paths]
    top_level = {path[0] for path in paths}
    if isinstance(config, dict):
        unknown = set(config) - top_level - set(names)
        if unknown:
            raise ValueError(
                f"`{argument}` names outputs that the student does not have: "
                f"{sorted(map(str, unknown))}. Its outputs are {list(names)}. "
                "If its outputs depend on `training`, it can be trained here; "
                "evaluate it without the Distiller."
            )
    elif len(config) not in (len(top_level), len(paths)):
        raise ValueError(
            f"`{argument}` has {len(config)} entries and the student "
            f"{len(paths)} outputs, {list(names)}. Received: "
            f"{argument}={config}. Pass one entry per output."
        )
    return [
        _follow(config, path, index, name)
        for index, (path, name) in enumerate(zip(paths, names))
    ]


def _follow(config, path, index, name):
    for key in path:
        if not tree.is_nested(config):
            break
        if isinstance(config, dict):
            config = config.get(key, config.get(name))
        else:
            config = config[key if isinstance(key, int) else index]
    return config


def at(structure, path):
    """Return the value at `path` in a nested structure."""
    for key in path:
        structure = structure[key]
    return structure


def select(values, path, index, names):
    """Return the labels or weights of one output.

    Args:
        values: one array for all outputs, or a structure like that of the
            outputs, or a dict by output name, or a flat list.
        path: where the output lies in the student's outputs.
        index: its position among them.
        names: names of the student's outputs, or `None`.

    Raises:
        ValueError: if there are several for a single output.
    """
    if not tree.is_nested(values):
        return values
    if not path:
        leaves = tree.flatten(values)
        if len(leaves) != 1:
            raise ValueError(
                "The student has one output, but the data has several labels "
                f"or weights for it. Received: {_shapes(values)}. Pass one "
                "array."
            )
        return leaves[0]
    if isinstance(values, dict) and names is not None:
        if names[index] in values:
            return values[names[index]]
    try:
        return at(values, path)
    except (KeyError, IndexError, TypeError):
        if isinstance(values, (list, tuple)) and index < len(values):
            return values[index]
        return None


def teacher_at(outputs, path, student_outputs=None):
    """Return the teacher's output for one output of the student.

    A single tensor is used for every output that compares with the teacher. A
    structure of one tensor is treated like that tensor.

    Args:
        outputs: the teacher's outputs, or symbolic tensors like them.
        path: where the output lies in the student's outputs.
        student_outputs: the student's outputs, for the message.

    Raises:
        ValueError: if the teacher returns nothing for this output.
    """
    found = outputs
    if tree.is_nested(outputs):
        try:
            found = at(outputs, path)
        except (KeyError, IndexError, TypeError):
            found = None
        leaves = tree.flatten(outputs)
        if tree.is_nested(found) and not path and len(leaves) == 1:
            (found,) = leaves
    if found is None or tree.is_nested(found):
        place = f" at {'/'.join(map(str, path))!r}" if path else ""
        student = ""
        if student_outputs is not None:
            student = f", student outputs={_shapes(student_outputs)}"
        raise ValueError(
            "The outputs of teacher and student must have the same structure. "
            f"Received: teacher outputs={_shapes(outputs)}{student}. A loss "
            f"compares one output of the student{place} with the teacher's. "
            "Wrap the teacher in a function that returns what the student "
            "should match, such as `lambda x: model(x)[0]`, or set the loss of "
            "this output to `None`."
        )
    return found


def _shapes(outputs):
    return tree.map_structure(
        lambda o: tuple(o.shape) if hasattr(o, "shape") else o, outputs
    )


def known_outputs(model):
    """Return the symbolic outputs of a model, or `None` if it has no graph."""
    if isinstance(model, keras.Sequential):
        # It has no graph if a layer's output shape is unknown.
        return model.outputs[0] if hasattr(model, "outputs") else None
    # A subclassed model also has `output` after another graph used it. Only a
    # functional model has `outputs`.
    return model.output if hasattr(model, "outputs") else None


def known_inputs(model):
    """Return the symbolic inputs of a model, or `None` if it has no graph."""
    if not hasattr(model, "inputs") or not model.built:
        return None
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return model.input


def ending_activation(output):
    """Return `(layer, name)` of the activation that an output ends in.

    Follows a symbolic output back through layers that only move values, and
    into nested models. `name` is `"linear"` for a layer with weights and no
    activation. Returns `(None, None)` if the activation is unknown.
    """
    layer, node_index, tensor_index = output._keras_history
    while True:
        if isinstance(layer, keras.Model):
            inner = known_outputs(layer)
            if inner is None:
                return None, None
            return ending_activation(tree.flatten(inner)[tensor_index])
        if isinstance(layer, keras.layers.Softmax):
            return layer, "softmax"
        activation = getattr(layer, "activation", None)
        name = getattr(activation, "__name__", None)
        moves = isinstance(layer, _TRANSPARENT) or (
            isinstance(layer, keras.layers.Activation) and name == "linear"
        )
        if not moves:
            return (layer, name) if name else (None, None)
        layer, node_index, tensor_index = (
            layer._inbound_nodes[node_index].input_tensors[0]._keras_history
        )
