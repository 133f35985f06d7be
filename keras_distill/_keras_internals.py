"""The private names of Keras that this package imports, each with its reason.

If a release of Keras moves one of them, the import fails here, loudly.

- `get_keras_mask`, `set_keras_mask`: Keras keeps a mask beside its tensor. Its
  losses and metrics read it there, and there is no public function that does.
  Without them, hints and batch statistics would count padding.
"""

from keras.src.backend import get_keras_mask
from keras.src.backend import set_keras_mask

__all__ = ["get_keras_mask", "with_keras_mask"]


def with_keras_mask(tensor, mask):
    """Return the tensor with this mask, or as it is for `None`."""
    if mask is not None and get_keras_mask(tensor) is None:
        set_keras_mask(tensor, mask)
    return tensor
