"""Torch modules as teachers: run in evaluation mode, and left as they were.

A module that was left in training mode would drop units at random and move its
running averages with every batch that it is shown. So each call switches its
modules over, and puts back what it has found: flags, buffers, and whatever a
module's own `train()` has changed.

Left out: calling `eval()` and `train()` on the whole module. They would lose
the flags of parts that were frozen one by one, and raise for exported programs.
PyTorch is looked at only where somebody else has imported it.
"""

import contextlib
import sys

import keras
from keras import tree

from keras_distill.teachers import _closures


def is_module(part):
    """Tell whether `part` is a torch module, and no layer of Keras."""
    torch = sys.modules.get("torch")
    if torch is None or isinstance(part, keras.layers.Layer):
        return False  # On PyTorch, every layer of Keras is a module as well.
    return isinstance(part, torch.nn.Module)


def modules_of(part):
    """Return the torch modules that run when `part` is called.

    Args:
        part: a torch module; a layer of Keras, which may wrap some; or a
            function or callable object. There, modules are found that it holds
            in its closure, defaults, attributes, lists and dicts, or names as
            globals, a few steps deep.
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
    """Run a block with modules in evaluation mode, and undo it afterwards."""
    if not modules:
        yield
        return
    import torch

    parts = {id(part): part for m in modules for part in m.modules()}
    kept = [_Kept(part) for part in parts.values()]
    try:
        with torch.no_grad():
            for each in kept:
                each.set_flag(False)
            for each in kept:
                each.call_own_eval()
            yield
    finally:
        with torch.no_grad():
            for each in kept:
                each.put_back()


class _Kept:
    """What one module was like before it ran."""

    def __init__(self, module):
        import torch

        self.module = module
        # Frozen programs have no flag.
        self.training = getattr(module, "training", None)
        # A `train()` of its own may set other attributes than flags, and write
        # into weights, where it merges them for inference.
        self.own = self.training and (
            type(module).train is not torch.nn.Module.train
        )
        self.attributes = dict(vars(module)) if self.own else {}
        self.buffers = dict(module.named_buffers(recurse=False))
        written = [*self.buffers.values()]
        if self.own:
            written += module.parameters()
        self.values = [(t, t.detach().clone()) for t in written]

    def set_flag(self, training):
        if self.training is not None:
            self.module.training = training

    def call_own_eval(self):
        if self.own:
            self.module.eval()

    def put_back(self):
        for name, buffer in self.buffers.items():
            now = getattr(self.module, name, None)
            # A cache that has grown stays.
            if now is not buffer and getattr(now, "shape", 0) == buffer.shape:
                setattr(self.module, name, buffer)
        for tensor, value in self.values:
            if not tensor.is_inference():  # Those can't be written into.
                tensor.copy_(value)
        if self.own:
            vars(self.module).clear()
            vars(self.module).update(self.attributes)
        self.set_flag(self.training)


def is_without_weights(module):
    """Tell whether a module waits for its first batch to have weights."""
    import torch

    return any(map(torch.nn.parameter.is_lazy, module.parameters()))


def values_of(module):
    """Return parameters and buffers as NumPy arrays of bytes."""
    import torch

    values = []
    for value in module.state_dict().values():
        if isinstance(value, torch.Tensor):
            value = value.int_repr() if value.is_quantized else value
            value = value.detach().cpu().reshape(-1).contiguous()
            values.append(value.view(torch.uint8).numpy())
    return values


def as_tensors(arrays, module):
    """Return arrays or tensors as torch tensors on a module's device."""
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
    """Return a torch tensor as NumPy; bfloat16, which NumPy lacks, as float32.

    Anything else is returned as it is.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(tensor, torch.Tensor):
        return tensor
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.numpy()
