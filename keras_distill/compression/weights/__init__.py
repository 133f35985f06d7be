"""Callbacks that compress weights in training: pruning and weight sharing."""

from keras_distill.compression.weights._keep_compressed import (
    KeepCompressed as KeepCompressed,
)
from keras_distill.compression.weights._magnitude_pruning import (
    MagnitudePruning as MagnitudePruning,
)
from keras_distill.compression.weights._weight_sharing import (
    WeightSharing as WeightSharing,
)
