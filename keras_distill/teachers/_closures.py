"""Finds the models that a function runs.

Keras and PyTorch cannot see the models inside a function. Keras layers must be
found, or their weights would be constants of a compiled JAX step. Torch modules
must be found, or a module in training mode would change with every batch.
"""

import contextlib
import functools
import types

import numpy as np

# Maximum depth of the search, for example
# function -> object -> list -> model.
_DEPTH = 4


def parts_of(part, is_wanted):
    """Return the wanted objects that a callable holds, or is itself.

    The search covers its closure, defaults, attributes, lists, dicts, and the
    globals that it names, up to a fixed depth.

    Args:
        part: any object.
        is_wanted: function from an object to a bool. The search does not enter
            wanted objects.
    """
    found, seen = [], set()

    def search(part, depth):
        if id(part) in seen or depth > _DEPTH:
            return
        seen.add(id(part))
        if is_wanted(part):
            found.append(part)
        else:
            for held in _held_by(part):
                search(held, depth + 1)

    search(part, 0)
    return found


def _held_by(part):
    """Return the objects that a callable may use when it runs."""
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, types.MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, types.FunctionType):
        return _held_by_function(part)
    if isinstance(part, dict):
        return list(part.values())
    if isinstance(part, (list, tuple, set)):
        return list(part)
    opaque = (type, types.ModuleType, np.ndarray)
    if isinstance(part, opaque) or not hasattr(part, "__dict__"):
        return []
    return [vars(type(part)).get("__call__"), *vars(part).values()]


def _held_by_function(function):
    held = [*(function.__defaults__ or ()), *vars(function).values()]
    held += (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            held.append(cell.cell_contents)
    names = _names_in(function.__code__)
    return held + [v for k, v in function.__globals__.items() if k in names]


def _names_in(code):
    """Return the names in a function, and in the functions inside of it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
