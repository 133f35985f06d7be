"""Which way is better: callbacks that watch a log of a Distiller.

`EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` with `mode="auto"`
ask Keras's own metrics for their direction, and no others.
"""

import keras
from keras import tree


def set_directions(callbacks, logs):
    """Set the mode of callbacks that watch a log whose direction is known.

    Args:
        callbacks: as for `fit()`.
        logs: the `Logs` of a Distiller.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    for callback in tree.flatten(callbacks):
        if getattr(callback, "mode", None) == "auto":
            name = str(getattr(callback, "monitor", "")).removeprefix("val_")
            direction = logs.direction_of(name)
            if direction is not None:
                callback.mode = direction
