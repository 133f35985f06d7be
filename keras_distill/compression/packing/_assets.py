"""Assets: state of layers beside their variables, such as a vocabulary.

Such a layer writes and reads files (`save_assets`, `load_assets`), and may have
state that is not a Keras variable (`save_own_variables`). The JSON of a packed
model has both, for each layer with files.
"""

import base64
import io
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

# These only assign values to variables.
_ASSIGN_ONLY = {
    kind.load_own_variables
    for kind in (
        keras.layers.Conv2D,
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Embedding,
        keras.layers.Layer,
    )
}


def assets_of(model: keras.Model) -> dict[str, Any]:
    """Return `{number of a layer: {"files": ..., "state": ...}}`, for JSON."""
    found = {}
    for number, layer in enumerate(model._flatten_layers()):
        if not hasattr(layer, "save_assets"):
            continue
        files = _files_of(layer)
        state: dict[str, Any] = {}
        layer.save_own_variables(state)
        if files:
            found[str(number)] = {
                "layer": type(layer).__name__,
                "files": files,
                "state": {key: _to_text(value) for key, value in state.items()},
            }
    return found


def _files_of(layer):
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        paths = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
        return {
            path.relative_to(folder).as_posix(): _encode(path.read_bytes())
            for path in sorted(paths)
        }


def check_assets(
    model: keras.Model, rebuilt: keras.Model, assets: dict[str, Any]
) -> None:
    """Raise a ValueError if the rebuilt model does not restore the assets.

    Keras stores a vocabulary as lines of text, so a word with a line break
    would become two words.
    """
    if not assets:
        return
    try:
        restore(rebuilt, assets)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be packed: the model built from "
            "its config cannot load its assets. Check `save_assets` and "
            f"`load_assets` of its layers. Received: {error}"
        ) from error
    for (own, _), (new, _) in zip(
        _layers(model, assets), _layers(rebuilt, assets)
    ):
        words = getattr(own, "get_vocabulary", lambda: None)()
        if words is not None and list(words) != list(new.get_vocabulary()):
            raise ValueError(
                f"The model {model.name!r} cannot be packed: Keras loads "
                f"another vocabulary of {own.name!r} than it saved. Pass the "
                "`vocabulary` to the constructor of the layer, without line "
                "breaks and empty words."
            )


def _layers(model, assets):
    """Return `[(layer, its assets)]`."""
    layers = list(model._flatten_layers())
    found = [(layers[int(number)], own) for number, own in assets.items()]
    for layer, own in found:
        if type(layer).__name__ != own["layer"]:
            raise ValueError(f"Expected: {own['layer']}. Received: {layer!r}")
    return found


def restore(model: keras.Model, assets: dict[str, Any]) -> None:
    """Load the assets into a model whose variables were loaded before."""
    pairs = _layers(model, assets)
    with_assets = {id(layer) for layer, _ in pairs}
    for layer in model._flatten_layers():
        # Some layers compute other state when their variables are loaded.
        if id(layer) not in with_assets and _has_custom_loading(layer):
            state: dict[str, Any] = {}
            layer.save_own_variables(state)
            layer.load_own_variables(_copied(state))
    for layer, own in pairs:
        state = {key: _to_array(text) for key, text in own["state"].items()}
        layer.load_own_variables(state)
    for layer, own in pairs:
        with tempfile.TemporaryDirectory() as folder:
            _write_files(pathlib.Path(folder), own["files"])
            layer.load_assets(folder)


def _has_custom_loading(layer):
    return type(layer).load_own_variables not in _ASSIGN_ONLY


def _copied(state):
    return {
        key: np.array(keras.ops.convert_to_numpy(value))
        for key, value in state.items()
    }


def _write_files(folder, files):
    for name, text in files.items():
        path = folder / name
        if ".." in path.parts or not path.is_relative_to(folder):
            raise ValueError(
                "The path of an asset must not leave its folder. "
                f"Received: {name!r}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_decode(text))


def _to_text(value):
    """Return an array of any dtype as text."""
    file = io.BytesIO()
    np.save(file, np.asarray(value), allow_pickle=False)
    return _encode(file.getvalue())


def _to_array(text):
    return np.load(io.BytesIO(_decode(text)), allow_pickle=False)


def _encode(data):
    """Return bytes as text, or in base64 in a list if they are not text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(data).decode()]


def _decode(text):
    if isinstance(text, str):
        return text.encode()
    return base64.b64decode(text[0])
