"""One way to name the layers of a model.

A layer of a nested model has a path, `"backbone/block_2/conv"`: the names of
the layers around it and its own. It is named by its path or by the end of it:
`"block_2/conv"` or `"conv"`, if no other path ends so. A path from the start
comes first: `"conv"` is the layer of this name in the model itself, whatever
nested models have. A path may begin with the name of the model.
"""

import difflib


def find_layer(model, name, argument):
    """Return the layer of a name or path.

    Args:
        model: the model to look in: of any class, with others inside.
        name: str, a name or path.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: if `name` is no string; if there is no such layer, with
            what comes close; or if there are several, with their paths.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"`{argument}` must name layers, by strings such as 'conv_1' or "
            f"'backbone/conv_1'. Received: {name!r}"
        )
    paths = layers_by_path(model)
    found = (
        _of_paths(paths, lambda path: path == name)
        or _of_paths(paths, lambda path: f"{model.name}/{path}" == name)
        or _of_paths(paths, lambda path: path.endswith(f"/{name}"))
    )
    if len(found) == 1:
        return found[0][1]
    if found:
        several = [path for path, _ in found]
        raise ValueError(
            f"`{argument}` names {len(found)} layers of the model "
            f"{model.name!r}. Received: {name!r}. Give one of these paths: "
            f"{several}."
        )
    raise ValueError(
        f"`{argument}` names a layer that the model {model.name!r} does not "
        f"have. Received: {name!r}. {_hint(name, paths)} A layer of a nested "
        "model is named by its path, as in 'backbone/conv_1', or by the end of "
        "it."
    )


def find_layers(model, names, argument):
    """Return the layers of a name, or of a list of names, in their order."""
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list | tuple | set | frozenset):
        raise ValueError(
            f"`{argument}` must be a name of a layer or a list of names. "
            f"Received: {names!r}"
        )
    return [find_layer(model, name, argument) for name in names]


def has_layer(model, name):
    """Return whether a name or path stands for one or more layers."""
    paths = [f"/{model.name}/{path}" for path, _ in layers_by_path(model)]
    return any(path.endswith(f"/{name}") for path in paths)


def values_by_layer(model, values, argument):
    """Return `{layer: (name, value)}` for a dict of values by name.

    Raises:
        ValueError: as `find_layer`, or if two names stand for one layer.
    """
    found = {}
    for name, value in values.items():
        layer = find_layer(model, name, argument)
        if layer in found:
            raise ValueError(
                f"`{argument}` names a layer twice. Received: "
                f"{found[layer][0]!r} and {name!r}, which are the same layer."
            )
        found[layer] = (name, value)
    return found


def layers_inside(layer):
    """Return a layer and all layers in it, each once."""
    return list({id(x): x for x in layer._flatten_layers()}.values())


def layers_by_path(model):
    """Return `[(path, layer)]` of all layers in a model, the outer ones first.

    A layer that is shared has several paths.
    """
    paths = []

    def walk(layer, prefix):
        for child in layer._flatten_layers(include_self=False, recursive=False):
            paths.append((prefix + child.name, child))
            walk(child, f"{prefix}{child.name}/")

    walk(model, "")
    return paths


def _of_paths(paths, fits):
    """Return `[(path, layer)]` of the paths that fit, each layer once."""
    found = {}
    for path, layer in paths:
        if fits(path):
            found.setdefault(id(layer), (path, layer))
    return list(found.values())


def _hint(name, paths):
    """Return what to say of paths that end in the same name, or look alike."""
    paths = list(dict.fromkeys(path for path, _ in paths))
    by_last = {}
    for path in paths:
        by_last.setdefault(path.rsplit("/", 1)[-1], []).append(path)
    last = name.rsplit("/", 1)[-1]
    close = by_last.get(last, [])
    if not close:
        alike = difflib.get_close_matches(last, by_last, n=5)
        close = [
            *difflib.get_close_matches(name, paths, n=5, cutoff=0.5),
            *(path for other in alike for path in by_last[other]),
        ]
    if close:
        return f"Did you mean {list(dict.fromkeys(close))[:5]}?"
    more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
    return f"It has {paths[:10]}{more}."
