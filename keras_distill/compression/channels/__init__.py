"""Channel pruning: narrower layers, with everything that depends on them."""

from keras_distill.compression.channels._prune_channels import (
    prune_channels as prune_channels,
)
