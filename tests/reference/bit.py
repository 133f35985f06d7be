"""BiT ResNets in plain PyTorch, and random checkpoints for them.

Nothing is imported from the examples. Names and shapes of the checkpoints, and
the network, follow the article and the published layout; that they do is what
`compare_bit_with_timm.py` checks.
"""

import numpy as np
import torch
from torch.nn import functional

CONVOLUTION = "standardized_conv2d/kernel"


def random_checkpoint(units, width, classes, seed=0):
    """Return `{name: array}` in which every number counts for the logits.

    Kernels spread as little as 3e-4 and scales are as small as 0.01: then a
    wrong epsilon, of kernels or of groups, shows in the logits.
    """
    random = np.random.default_rng(seed)
    arrays = {}

    def add(name, array):
        arrays[f"resnet/{name}"] = array.astype("float32")

    def kernel(prefix, *shape):
        spread = 10 ** random.uniform(-3.5, -1)
        array = random.normal(0.1 * spread, spread, shape)
        add(f"{prefix}{CONVOLUTION}", array)

    def group_norm(prefix, channels, scale=None):
        scale = scale or 10 ** random.uniform(-2, 0)
        gamma = scale * random.uniform(0.5, 1.5, channels)
        add(f"{prefix}group_norm/gamma", gamma)
        beta = scale * random.normal(0, 0.5, channels)
        add(f"{prefix}group_norm/beta", beta)

    channels = 64 * width
    kernel("root_block/", 7, 7, 3, channels)
    for block, count in enumerate(units, 1):
        narrow = 64 * width * 2 ** (block - 1)
        for unit in range(1, count + 1):
            prefix = f"block{block}/unit{unit:02d}/"
            group_norm(f"{prefix}a/", channels)
            kernel(f"{prefix}a/", 1, 1, channels, narrow)
            if unit == 1:
                kernel(f"{prefix}a/proj/", 1, 1, channels, 4 * narrow)
            group_norm(f"{prefix}b/", narrow)
            kernel(f"{prefix}b/", 3, 3, narrow, narrow)
            group_norm(f"{prefix}c/", narrow)
            kernel(f"{prefix}c/", 1, 1, narrow, 4 * narrow)
            channels = 4 * narrow
    group_norm("", channels, scale=1.0)
    head = random.normal(0, 0.05, (1, 1, channels, classes))
    add("head/conv2d/kernel", head)
    add("head/conv2d/bias", random.normal(0, 0.1, classes))
    return arrays


def faint_images(size, count=2, seed=0):
    """Return images in [-1, 1] with little contrast, where an epsilon shows."""
    random = np.random.default_rng(seed)
    coarse = random.normal(0, 0.02, (count, 5, 5, 3))
    tile = -(-size // 5)
    coarse = coarse.repeat(tile, 1).repeat(tile, 2)[:, :size, :size]
    fine = random.normal(0, 0.02, (count, size, size, 3))
    return (0.3 + coarse + fine).astype("float32")


def logits(arrays, images):
    """Return the logits for `images`, NHWC, in float64."""
    arrays = {
        name.removeprefix("resnet/"): torch.tensor(a, dtype=torch.float64)
        for name, a in arrays.items()
    }
    x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    x = _convolve(arrays, x, "root_block/", stride=2, padding=3)
    x = functional.pad(x, (1, 1, 1, 1))
    x = functional.max_pool2d(x, 3, 2)
    units = {name.rsplit("/", 3)[0] for name in arrays if "/unit" in name}
    units = {name.removesuffix("/a") for name in units}
    for unit in sorted(units):
        first = unit.endswith("unit01")
        stride = 2 if first and not unit.startswith("block1") else 1
        pre = _activate(arrays, x, f"{unit}/a/")
        if first:
            x = _convolve(arrays, pre, f"{unit}/a/proj/", stride=stride)
        y = _convolve(arrays, pre, f"{unit}/a/")
        y = _activate(arrays, y, f"{unit}/b/")
        y = _convolve(arrays, y, f"{unit}/b/", stride=stride, padding=1)
        y = _activate(arrays, y, f"{unit}/c/")
        x = x + _convolve(arrays, y, f"{unit}/c/")
    x = _activate(arrays, x, "").mean((2, 3))
    kernel, bias = arrays["head/conv2d/kernel"], arrays["head/conv2d/bias"]
    return (x @ kernel[0, 0] + bias).numpy()


def _activate(arrays, x, prefix):
    gamma = arrays[f"{prefix}group_norm/gamma"]
    beta = arrays[f"{prefix}group_norm/beta"]
    return functional.group_norm(x, 32, gamma, beta, eps=1e-5).relu()


def _convolve(arrays, x, prefix, **how):
    kernel = arrays[f"{prefix}{CONVOLUTION}"].permute(3, 2, 0, 1)
    variance, mean = torch.var_mean(
        kernel, (1, 2, 3), correction=0, keepdim=True
    )
    kernel = (kernel - mean) / (variance + 1e-10).sqrt()
    return functional.conv2d(x, kernel, **how)
