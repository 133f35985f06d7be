"""The one way in which this package names the layers of a model.

The path of a layer consists of the names of the models and layers around it
and its own name: `"backbone/block_2/conv"`. A layer is named by its path or by
the end of its path (`"block_2/conv"` or `"conv"`), if no other path ends in the
same way. A full path takes precedence: `"conv"` is the layer of this name at
the top level of the model, even if nested models have a `"conv"` too. A path
may begin with the name of the model.
"""

import difflib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras
from keras.layers import Layer


def find_layer(model: keras.Model, name: str, argument: str) -> Layer:
    """Return the layer with a name or path.

    Args:
        model: the model to search: of any class, with nested models or not.
        name: str, a name or path.
        argument: the name of the user's argument, for error messages.

    Raises:
        ValueError: if `name` is not a string; if there is no such layer (the
            message suggests similar names); or if there are several (the
            message lists their paths).
    """
    if not isinstance(name, str):
        raise ValueError(
            f"`{argument}` must name layers by strings, such as 'conv_1' or "
            f"'backbone/conv_1'. Received: {name!r}"
        )
    paths = layers_by_path(model)
    found = (
        _matching(paths, lambda path: path == name)
        or _matching(paths, lambda path: f"{model.name}/{path}" == name)
        or _matching(paths, lambda path: path.endswith(f"/{name}"))
    )
    if len(found) == 1:
        return found[0][1]
    if found:
        several = [path for path, _ in found]
        raise ValueError(
            f"`{argument}` matches {len(found)} layers of the model "
            f"{model.name!r}. Received: {name!r}. Use one of these paths: "
            f"{several}."
        )
    raise ValueError(
        f"`{argument}` names a layer that the model {model.name!r} does not "
        f"have. Received: {name!r}. {_suggestion(name, paths)} Name a layer of "
        "a nested model by its path, as in 'backbone/conv_1', or by the end of "
        "its path."
    )


def find_layers(
    model: keras.Model, names: str | Iterable[str], argument: str
) -> list[Layer]:
    """Return the layers with these names, in their order.

    Args:
        model: the model to search.
        names: a name, or a list, tuple or set of names.
        argument: the name of the user's argument, for error messages.
    """
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list | tuple | set | frozenset):
        raise ValueError(
            f"`{argument}` must be a name of a layer or a list of names. "
            f"Received: {names!r}"
        )
    return [find_layer(model, name, argument) for name in names]


def has_layer(model: keras.Model, name: str) -> bool:
    """Return whether one or more layers match a name or path."""
    paths = [f"/{model.name}/{path}" for path, _ in layers_by_path(model)]
    return any(path.endswith(f"/{name}") for path in paths)


def values_by_layer(
    model: keras.Model, values: Mapping[str, Any], argument: str
) -> dict[Layer, tuple[str, Any]]:
    """Return `{layer: (name, value)}` for a dict of values by layer name.

    Raises:
        ValueError: as `find_layer`, or if two names match the same layer.
    """
    found: dict[Layer, tuple[str, Any]] = {}
    for name, value in values.items():
        layer = find_layer(model, name, argument)
        if layer in found:
            raise ValueError(
                f"`{argument}` names the same layer twice. Received: "
                f"{found[layer][0]!r} and {name!r}. Keep one of them."
            )
        found[layer] = (name, value)
    return found


def layers_inside(layer: Layer) -> list[Layer]:
    """Return a layer and all layers nested in it, each once."""
    return list({id(x): x for x in layer._flatten_layers()}.values())


def layers_by_path(model: keras.Model) -> list[tuple[str, Layer]]:
    """Return `[(path, layer)]` of all layers in a model, outer layers first.

    A shared layer has several paths.
    """
    paths = []

    def walk(layer, prefix):
        for child in layer._flatten_layers(include_self=False, recursive=False):
            paths.append((prefix + child.name, child))
            walk(child, f"{prefix}{child.name}/")

    walk(model, "")
    return paths


def _matching(paths, matches):
    """Return the `(path, layer)` pairs whose path matches, each layer once."""
    found = {}
    for path, layer in paths:
        if matches(path):
            found.setdefault(id(layer), (path, layer))
    return list(found.values())


def _suggestion(name, paths):
    """Return a sentence that names paths similar to an unknown name.

    Paths that end in the same layer name come first, similar spellings next.
    """
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
