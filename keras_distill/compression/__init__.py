"""Compression: make any Keras model smaller.

This package imports nothing from distillation. Each function returns a plain
Keras model or writes a file. A `Distiller` can train such a model as its
student.
"""

from keras_distill.compression.channels import prune_channels as prune_channels
from keras_distill.compression.channels import taylor_scores as taylor_scores
from keras_distill.compression.channels import compare_widths as compare_widths
from keras_distill.compression._factorize import factorize as factorize
from keras_distill.compression._separate import separate as separate
from keras_distill.compression._fold_batch_norm import (
    fold_batch_norm as fold_batch_norm,
)
from keras_distill.compression.weights import (
    MagnitudePruning as MagnitudePruning,
)
from keras_distill.compression.weights import WeightSharing as WeightSharing
from keras_distill.compression.weights import KeepCompressed as KeepCompressed
from keras_distill.compression.packing import pack as pack
from keras_distill.compression.packing import unpack as unpack
from keras_distill.compression.litert import quantize_aware as quantize_aware
from keras_distill.compression.litert import export_litert as export_litert

__all__ = [
    "KeepCompressed",
    "MagnitudePruning",
    "WeightSharing",
    "compare_widths",
    "export_litert",
    "factorize",
    "fold_batch_norm",
    "pack",
    "prune_channels",
    "quantize_aware",
    "separate",
    "taylor_scores",
    "unpack",
]
