"""LiteRT files: quantization-aware training and export."""

from keras_distill.compression.litert._export_litert import (
    export_litert as export_litert,
)
from keras_distill.compression.litert._quantize_aware import (
    quantize_aware as quantize_aware,
)
