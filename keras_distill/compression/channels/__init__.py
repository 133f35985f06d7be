"""Channel pruning: remove channels, with every weight that depends on them."""

from keras_distill.compression.channels._prune_channels import (
    prune_channels as prune_channels,
)
from keras_distill.compression.channels._taylor_scores import (
    taylor_scores as taylor_scores,
)
from keras_distill.compression.channels._widths import (
    compare_widths as compare_widths,
)
