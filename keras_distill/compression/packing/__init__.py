"""Packed models: a model as one small file, with lossless compression."""

from keras_distill.compression.packing._pack import pack as pack
from keras_distill.compression.packing._pack import unpack as unpack
