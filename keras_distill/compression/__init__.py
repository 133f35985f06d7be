"""A smaller network out of a given one, on any Keras model.

Nothing here knows of distillation. What comes out is a plain Keras model that a
Distiller can take as its student.
"""

from keras_distill.compression.channels import prune_channels as prune_channels
from keras_distill.compression.low_rank import factorize as factorize
from keras_distill.compression.separable import separate as separate

__all__ = ["factorize", "prune_channels", "separate"]
