"""RecordedHead: the last layer of a teacher, kept once for all hidden states.

    head.npy    float32 (width, classes): the kernel; and one row for the bias

A recording with `hidden_states` holds what this layer reads. Of a language
model, that is its width in place of its vocabulary: 2,048 values of a token and
not 152,000, for example. The layer computes in the dtype that it had in the
teacher, so its outputs are the teacher's.

Left out: the layer as a Keras file. It would bring code from another place, and
the file may come from anybody.
"""

import functools
import math
import zlib
from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill._graphs._head import split_head
from keras_distill._typing import Tensor
from keras_distill.recording import _storage

_FILE = "head.npy"


class RecordedHead:
    """Computes a teacher's outputs from its recorded hidden states.

    Args:
        arrays: float32 `(width + 1, classes)`, or `(width, classes)` without a
            bias.
        entry: dict, the entry `"head"` of the manifest.
    """

    def __init__(self, arrays: np.ndarray, entry: dict[str, Any]) -> None:
        self._arrays, self.entry = arrays, entry

    @functools.cached_property
    def variables(self) -> list[keras.Variable]:
        """The kernel, and the bias if there is one, on the device."""
        return [
            keras.Variable(value, trainable=False, dtype=self.entry["dtype"])
            for value in self._kernel_and_bias()
        ]

    def _kernel_and_bias(self):
        width = self.entry["width"]
        return [self._arrays[:width], *self._arrays[width:]]

    def of_a_few(self, hidden: np.ndarray) -> np.ndarray:
        """Return the outputs `(count, classes)` of at most 16 hidden states."""
        values = [
            ops.convert_to_tensor(value, dtype=self.entry["dtype"])
            for value in self._kernel_and_bias()
        ]
        few = hidden.reshape(-1, self.entry["width"])[:16]
        return ops.convert_to_numpy(self(ops.convert_to_tensor(few), values))

    def write(self, folder: Any) -> None:
        """Write the file to the folder of a recording.

        It replaces one that another teacher left, or that is damaged.
        """
        folder.write(_FILE, lambda out: np.save(out, self._arrays))

    def __call__(self, hidden: Tensor, values: list[Tensor]) -> Tensor:
        """Return the outputs `(..., classes)` for hidden states.

        Args:
            hidden: `(..., width)`.
            values: the values of `variables`.
        """
        kernel, *bias = values
        outputs = ops.matmul(ops.cast(hidden, self.entry["dtype"]), kernel)
        for each in bias:
            outputs = ops.add(outputs, each)
        cap = self.entry["soft_cap"]
        if cap is not None:
            outputs = ops.multiply(ops.tanh(ops.divide(outputs, cap)), cap)
        if self.entry["softmax"]:
            outputs = ops.softmax(outputs, axis=-1)
        return ops.cast(outputs, "float32")


def separate_head(live_teacher: Any) -> RecordedHead:
    """Let a teacher run up to its last hidden states; return its head.

    Args:
        live_teacher: the `LiveTeacher`.

    Raises:
        ValueError: if the teacher is not one model with such a head.
    """
    (member, *others), parts = live_teacher.members, None
    if isinstance(member, keras.Model) and not others:
        parts = split_head(member)
    if parts is None or live_teacher.runners != live_teacher.members:
        raise _no_head(live_teacher.given)
    body, head = parts
    recorded = _recorded(head.operations, live_teacher.given)
    if not _are_equal(head, recorded):
        raise _no_head(live_teacher.given)
    live_teacher.runners = [body]
    return recorded


def _recorded(operations, given):
    layer, *others = operations
    if getattr(layer, "quantization_mode", None) is not None:
        raise _no_head(given)
    dtype, soft_cap, rows = layer.compute_dtype, None, []
    if isinstance(layer, layers.ReversibleEmbedding):
        soft_cap = layer.logit_soft_cap
        dtype = layer.reverse_dtype or dtype
        if layer.tie_weights:
            kernel = ops.transpose(layer.embeddings)
        else:
            kernel = layer.reverse_embeddings
    else:
        others = [layer.activation, *others]
        kernel = layer.kernel
        if layer.bias is not None:
            rows = [_float32(layer.bias)[None]]
    kinds = [_kind(operation) for operation in others]
    kinds = [kind for kind in kinds if kind != "linear"]
    if kinds not in ([], ["softmax"]):
        raise _no_head(given)
    kernel = _float32(kernel)
    arrays = np.concatenate([kernel, *rows])
    entry = {
        "width": len(kernel),
        "classes": kernel.shape[1],
        "bias": bool(rows),
        "dtype": dtype,
        "soft_cap": soft_cap,
        "softmax": kinds == ["softmax"],
        "checksum": zlib.crc32(arrays.data),
    }
    return RecordedHead(arrays, entry)


def _are_equal(head, recorded):
    """Return whether both compute the same, which a subclass need not do."""
    hidden = head.hidden
    values = np.linspace(-1, 1, recorded.entry["width"], dtype="float32")
    values = values.reshape((1,) * (len(hidden.shape) - 1) + (-1,))
    expected = head(
        ops.convert_to_tensor(values, hidden.dtype),
        [variable.value for variable in head.variables],
    )
    expected = _float32(expected).reshape(-1, recorded.entry["classes"])
    limit = 0.01 * (np.abs(expected).max() + 1e-6)
    return np.abs(recorded.of_a_few(values) - expected).max() <= limit


def _kind(operation):
    """Return the name of an activation, `None` if it is another one."""
    if isinstance(operation, layers.Softmax):
        return "softmax"
    function = getattr(operation, "activation", operation)
    for name in ("linear", "softmax"):
        if function is keras.activations.get(name):
            return name
    return None


def _float32(values):
    values = ops.convert_to_numpy(ops.cast(values, "float32"))
    return np.ascontiguousarray(values)


def _no_head(given):
    return ValueError(
        "`hidden_states` requires one functional Keras model as teacher, and "
        "no `teacher_dtype`. The model must end in a `keras.layers.Dense` or a "
        "`keras.layers.ReversibleEmbedding` that is not quantized and that "
        "computes what Keras defines, with no activation after it but softmax. "
        f"Received: teacher={given!r}. Use `top_k`, or leave `hidden_states` "
        "out."
    )


def read_head(folder: Any, manifest: dict) -> RecordedHead | None:
    """Return the head of a recording, `None` if it holds outputs.

    Raises:
        ValueError: if the file is missing, incomplete or damaged.
    """
    entry = manifest["head"]
    if entry is None:
        return None
    shape = entry["width"] + entry["bias"], entry["classes"]
    values = _storage.checked_rows(
        folder,
        _FILE,
        np.dtype("<f4"),
        folder.size(_FILE) or 0,
        math.prod(shape),
        entry["checksum"],
    )
    return RecordedHead(values.reshape(shape), entry)
