"""A smaller network out of a given one, on any Keras model.

Nothing here knows of distillation. What comes out is a plain Keras model that a
Distiller can take as its student.
"""

from keras_distill.compression.archive import pack as pack
from keras_distill.compression.archive import unpack as unpack
from keras_distill.compression.channels import prune_channels as prune_channels
from keras_distill.compression.keep_compressed import (
    KeepCompressed as KeepCompressed,
)
from keras_distill.compression.litert import export_litert as export_litert
from keras_distill.compression.low_rank import factorize as factorize
from keras_distill.compression.magnitude_pruning import (
    MagnitudePruning as MagnitudePruning,
)
from keras_distill.compression.quantization_aware import (
    quantize_aware as quantize_aware,
)
from keras_distill.compression.separable import separate as separate
from keras_distill.compression.weight_sharing import (
    WeightSharing as WeightSharing,
)

__all__ = [
    "KeepCompressed",
    "MagnitudePruning",
    "WeightSharing",
    "export_litert",
    "factorize",
    "pack",
    "prune_channels",
    "quantize_aware",
    "separate",
    "unpack",
]
