"""What layers know besides their variables, such as a vocabulary.

Keras lets such a layer write and read files (`save_assets`, `load_assets`), and
state that is no variable of Keras (`save_own_variables`). A packed model has
both in its JSON, for each layer that has files.
"""

import base64
import io
import pathlib
import tempfile

import keras
import numpy as np

# These do nothing but give their variables the values.
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


def assets_of(model):
    """Return `{number of a layer: {"files": ..., "state": ...}}`, for JSON."""
    found = {}
    for number, layer in enumerate(model._flatten_layers()):
        if not hasattr(layer, "save_assets"):
            continue
        files, state = _files_of(layer), {}
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


def check_assets(model, made, assets):
    """Raise a ValueError if a model made again can't be given the assets.

    A vocabulary is a file of lines: words with a line break in them are two.
    """
    if not assets:
        return
    try:
        restore(made, assets)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} can't be packed: a model that is made "
            f"of its config does not take its assets. Received: {error}"
        ) from error
    for (own, _), (new, _) in zip(
        _layers(model, assets), _layers(made, assets)
    ):
        words = getattr(own, "get_vocabulary", lambda: None)()
        if words is not None and list(words) != list(new.get_vocabulary()):
            raise ValueError(
                f"The model {model.name!r} can't be packed: the vocabulary of "
                f"{own.name!r} comes back from Keras's file of it as another "
                "one. Give the layer its `vocabulary` when you make it, and "
                "take line breaks and empty words out of it."
            )


def _layers(model, assets):
    """Return `[(layer, its assets)]`."""
    layers = list(model._flatten_layers())
    found = [(layers[int(number)], own) for number, own in assets.items()]
    for layer, own in found:
        if type(layer).__name__ != own["layer"]:
            raise ValueError(f"Expected: {own['layer']}. Received: {layer!r}")
    return found


def restore(model, assets):
    """Give the layers of a model what they know, its variables being there."""
    pairs = _layers(model, assets)
    with_assets = {id(layer) for layer, _ in pairs}
    for layer in model._flatten_layers():
        # Some compute what they need of their variables when these are loaded.
        if id(layer) not in with_assets and _loads(layer):
            state = {}
            layer.save_own_variables(state)
            layer.load_own_variables(_copied(state))
    for layer, own in pairs:
        state = {key: _to_array(text) for key, text in own["state"].items()}
        layer.load_own_variables(state)
    for layer, own in pairs:
        with tempfile.TemporaryDirectory() as folder:
            _write_files(pathlib.Path(folder), own["files"])
            layer.load_assets(folder)


def _loads(layer):
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
            raise ValueError(f"An asset must not leave its folder: {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_decode(text))


def _to_text(value):
    """Return an array, whatever its dtype, as text."""
    file = io.BytesIO()
    np.save(file, np.asarray(value), allow_pickle=False)
    return _encode(file.getvalue())


def _to_array(text):
    return np.load(io.BytesIO(_decode(text)), allow_pickle=False)


def _encode(data):
    """Return bytes as text: as they are, if they are text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(data).decode()]


def _decode(text):
    if isinstance(text, str):
        return text.encode()
    return base64.b64decode(text[0])
