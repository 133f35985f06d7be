"""Callbacks that compress weights during training: zeros, shared values."""

from keras_distill.compression.weights._keep_compressed import (
    KeepCompressed as KeepCompressed,
)
from keras_distill.compression.weights._magnitude_pruning import (
    MagnitudePruning as MagnitudePruning,
)
from keras_distill.compression.weights._weight_sharing import (
    WeightSharing as WeightSharing,
)
