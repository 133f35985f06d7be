"""Modes of callbacks: whether higher or lower is better for a log.

`EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` with `mode="auto"`
know the direction of Keras's own metrics only.
"""

import keras
from keras import tree


def set_modes(callbacks, direction_of):
    """Set the mode of callbacks that monitor a log of the Distiller.

    Args:
        callbacks: as for `fit()`.
        direction_of: function from the name of a log to `"min"`, `"max"` or
            `None`.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    for callback in tree.flatten(callbacks):
        if getattr(callback, "mode", None) == "auto":
            name = str(getattr(callback, "monitor", "")).removeprefix("val_")
            direction = direction_of(name)
            if direction is not None:
                callback.mode = direction
