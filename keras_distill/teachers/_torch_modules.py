"""Torch modules as teachers: run in evaluation mode, and restored afterwards.

A module in training mode would drop units at random and update its running
averages with every batch. So each call switches its modules to evaluation mode,
and afterwards restores their flags, their buffers, and what a custom `train()`
changed.

Left out: calling `eval()` and `train()` on the whole module. This would lose
the flags of submodules that were frozen one by one, and raise for exported
programs. PyTorch is used only if other code has imported it.
"""

import contextlib
import sys

import keras
from keras import tree

from keras_distill.teachers import _closures


def is_module(part):
    """Return whether `part` is a torch module and not a Keras layer."""
    torch = sys.modules.get("torch")
    if torch is None or isinstance(part, keras.layers.Layer):
        return False  # On PyTorch, Keras layers are torch modules too.
    return isinstance(part, torch.nn.Module)


def modules_of(part):
    """Return the torch modules that run when `part` is called.

    Args:
        part: a torch module; a Keras layer, which may wrap some; or a function
            or callable object, which is searched, see `_closures.parts_of`.
    """
    if "torch" not in sys.modules:
        return []
    modules = []
    for each in _closures.parts_of(part, _is_module_or_layer):
        if isinstance(each, keras.layers.Layer):
            modules += _wrapped_in(each)
        else:
            modules.append(each)
    return modules


def _is_module_or_layer(part):
    return isinstance(part, keras.layers.Layer) or is_module(part)


def _wrapped_in(layer):
    return [
        each
        for each in layer._flatten_layers()
        if isinstance(each, keras.layers.TorchModuleWrapper)
    ]


@contextlib.contextmanager
def evaluating(modules):
    """Run a block with modules in evaluation mode, then restore them."""
    if not modules:
        yield
        return
    import torch

    parts = {id(part): part for m in modules for part in m.modules()}
    saved = [_SavedModule(part) for part in parts.values()]
    try:
        with torch.no_grad():
            for each in saved:
                each.set_flag(False)
            for each in saved:
                each.call_custom_eval()
            yield
    finally:
        with torch.no_grad():
            for each in saved:
                each.restore()


class _SavedModule:
    """The state of one module before it ran, without its submodules."""

    def __init__(self, module):
        import torch

        self.module = module
        # Exported programs have no flag.
        self.training = getattr(module, "training", None)
        # A custom `train()` may set other attributes than the flag, and write
        # to weights, for example to merge them for inference.
        self.custom = self.training and (
            type(module).train is not torch.nn.Module.train
        )
        self.attributes = dict(vars(module)) if self.custom else {}
        self.buffers = dict(module.named_buffers(recurse=False))
        written = [*self.buffers.values()]
        if self.custom:
            written += module.parameters()
        self.values = [(t, t.detach().clone()) for t in written]

    def set_flag(self, training):
        if self.training is not None:
            self.module.training = training

    def call_custom_eval(self):
        if self.custom:
            self.module.eval()

    def restore(self):
        for name, buffer in self.buffers.items():
            now = getattr(self.module, name, None)
            # A cache may have grown.
            if now is not buffer and getattr(now, "shape", 0) == buffer.shape:
                setattr(self.module, name, buffer)
        for tensor, value in self.values:
            if not tensor.is_inference():  # Inference tensors are read-only.
                tensor.copy_(value)
        if self.custom:
            vars(self.module).clear()
            vars(self.module).update(self.attributes)
        self.set_flag(self.training)


def is_without_weights(module):
    """Return whether a module creates its weights on its first batch."""
    import torch

    return any(map(torch.nn.parameter.is_lazy, module.parameters()))


def values_of(module):
    """Return parameters and buffers of a module as NumPy arrays of bytes."""
    import torch

    values = []
    for value in module.state_dict().values():
        if isinstance(value, torch.Tensor):
            value = value.int_repr() if value.is_quantized else value
            value = value.detach().cpu().reshape(-1).contiguous()
            values.append(value.view(torch.uint8).numpy())
    return values


def as_tensors(arrays, module):
    """Return arrays or tensors as torch tensors on the device of a module."""
    import torch

    device = next(
        (t.device for t in (*module.parameters(), *module.buffers())),
        torch.device("cpu"),
    )

    def convert(leaf):
        if not isinstance(leaf, torch.Tensor):
            leaf = torch.tensor(keras.ops.convert_to_numpy(leaf))
        return leaf.to(device)

    return tree.map_structure(convert, arrays)


def to_numpy(tensor):
    """Return a torch tensor as a NumPy array, and anything else unchanged.

    NumPy has no bfloat16, which becomes float32.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(tensor, torch.Tensor):
        return tensor
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.numpy()
