"""Types of the public signatures."""

from typing import Any
from typing import TypeAlias

# A tensor of the active backend, a NumPy array, or a symbolic KerasTensor. No
# type checker can hold its shape and dtype: docstrings say them.
Tensor: TypeAlias = Any
# A tensor, or a list, tuple or dict of tensors.
Tensors: TypeAlias = Any
