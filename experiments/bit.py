"""BiT: ResNets that read the published "Big Transfer" checkpoints.

    model = bit_resnet("R50x1", classes=102)
    load_checkpoint(model, "BiT-M-R50x1.npz")
    network = keras.Sequential([rescaling(255), model])

A ResNet-v2 (normalisation before convolution) with GroupNorm and standardised
kernels, so nothing in it depends on the batch: a good teacher, and a student
that starts from ImageNet-21k.

The checkpoints were trained with symmetric padding, a GroupNorm epsilon of 1e-5
and a kernel epsilon of 1e-10. Keras's own padding, lopsided for even sizes, and
its epsilon of 1e-3 would run too, and give other outputs.

Sources: Kolesnikov et al. 2020, https://arxiv.org/abs/1912.11370, and the
networks and file names of https://github.com/google-research/big_transfer.
Kernel standardisation: Qiao et al. 2019, https://arxiv.org/abs/1903.10520.
"""

import pathlib
import zipfile
import zlib

import keras
import numpy as np
from keras import layers
from keras import ops

GROUP_EPSILON = 1e-5
KERNEL_EPSILON = 1e-10
HEAD = "head-conv2d"

# Units in each of the four blocks, and the factor on all widths.
VARIANTS = {
    "R50x1": ((3, 4, 6, 3), 1),
    "R50x3": ((3, 4, 6, 3), 3),
    "R101x1": ((3, 4, 23, 3), 1),
    "R101x3": ((3, 4, 23, 3), 3),
    "R152x2": ((3, 8, 36, 3), 2),
    "R152x4": ((3, 8, 36, 3), 4),
}


def bit_resnet(name, classes=None, input_shape=(None, None, 3)):
    """Return a BiT ResNet with random weights, and a head of zeros.

    Args:
        name: a key of `VARIANTS`.
        classes: the number of logits; without it, the model ends in the
            features.
        input_shape: `(height, width, channels)`; `None` stands for any size.

    Input shape: `(batch, height, width, 3)`, values in [-1, 1]; see
    `rescaling`.

    Output shape: `(batch, classes)`, float32 logits; without `classes`,
    `(batch, 2048 * width)`, values from 0 up.
    """
    if name not in VARIANTS:
        raise ValueError(
            f"`name` must be one of {', '.join(VARIANTS)}. Received: {name}"
        )
    units, width = VARIANTS[name]
    return resnet_v2(units, width, classes, input_shape, f"bit_{name}")


def rescaling(brightest):
    """Return the layer from pixels in [0, brightest] to BiT's [-1, 1]."""
    return layers.Rescaling(2 / brightest, offset=-1.0)


def resnet_v2(units, width, classes, input_shape, name):
    """Return the network with so many `units` per block; see `bit_resnet`.

    Layers are named as in the checkpoints, with "-" for "/". The output of a
    unit is its layer "add": `model.get_layer("block3-unit06-add")`.
    """
    inputs = keras.Input(input_shape)
    x = _convolve(inputs, 64 * width, 7, 2, "root_block")
    # Zeros, not the minus infinity of a padded maximum: `x` is negative too.
    x = layers.ZeroPadding2D(1, name="root_block-pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="root_block-pool")(x)
    for block, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            strides = 2 if unit == 1 and block > 1 else 1
            channels = 64 * width * 2 ** (block - 1)
            x = _unit(x, channels, strides, f"block{block}-unit{unit:02d}")
    x = _normalize(x, "")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if classes is not None:
        head = {"kernel_initializer": "zeros", "dtype": "float32"}
        x = layers.Dense(classes, **head, name=HEAD)(x)
    return keras.Model(inputs, x, name=name)


def _unit(x, channels, strides, name):
    """A bottleneck: narrow, convolve, widen, and add what came in."""
    shortcut = x
    x = _normalize(x, f"{name}-a-")
    if strides > 1 or shortcut.shape[-1] != 4 * channels:
        shortcut = _convolve(x, 4 * channels, 1, strides, f"{name}-a-proj")
    x = _convolve(x, channels, 1, 1, f"{name}-a")
    x = _normalize(x, f"{name}-b-")
    x = _convolve(x, channels, 3, strides, f"{name}-b")
    x = _normalize(x, f"{name}-c-")
    x = _convolve(x, 4 * channels, 1, 1, f"{name}-c")
    return layers.Add(name=f"{name}-add")([x, shortcut])


def _normalize(x, prefix):
    x = layers.GroupNormalization(
        32, epsilon=GROUP_EPSILON, name=f"{prefix}group_norm"
    )(x)
    return layers.ReLU(name=f"{prefix}relu")(x)


def _convolve(x, channels, size, strides, name):
    """Convolve with equal padding on all sides."""
    if size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}-pad")(x)
    return StandardizedConv2D(
        channels,
        size,
        strides,
        use_bias=False,
        name=f"{name}-standardized_conv2d",
    )(x)


@keras.saving.register_keras_serializable(package="keras_distill_experiments")
class StandardizedConv2D(layers.Conv2D):
    """A convolution with kernels of mean 0 and variance 1.

    Per output channel, over height, width and input channels:

        standardised = (kernel - mean) / sqrt(variance + 1e-10)

    in float32 or better, whatever the layer computes in. Arguments and shapes
    are those of `keras.layers.Conv2D`.
    """

    def add_weight(self, *args, **kwargs):
        # Rounded first, a kernel far from 0 would lose what it differs in.
        if kwargs.get("name") == "kernel":
            kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)

    def convolution_op(self, inputs, kernel):
        kernel = ops.cast(standardized(kernel), self.compute_dtype)
        return super().convolution_op(inputs, kernel)


def standardized(kernel):
    """Return the kernel, `(height, width, in, out)`, with moments 0 and 1."""
    dtype = keras.backend.result_type(kernel.dtype, "float32")
    kernel = ops.cast(kernel, dtype)
    # In two passes: `ops.moments` subtracts squares on PyTorch.
    kernel = kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
    variance = ops.mean(ops.square(kernel), axis=(0, 1, 2), keepdims=True)
    return kernel * ops.rsqrt(variance + KERNEL_EPSILON)


def load_checkpoint(model, path):
    """Set the weights of a `bit_resnet` from a published `.npz` file.

    The head is set if the file has one of as many classes. Otherwise it stays
    as it is, so that a model of 102 classes starts from the features of one of
    21,843. Everything is checked before the first weight changes.

    Args:
        model: from `bit_resnet`.
        path: of a file such as `BiT-M-R50x1.npz` or `R152x2_T_224.npz`, with
            arrays such as `resnet/block1/unit01/a/standardized_conv2d/kernel`.

    Returns:
        Whether the head was set, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole `.npz` archive, or one of another network.
    """
    path = pathlib.Path(path)
    variables = {
        f"resnet/{layer.name.replace('-', '/')}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.weights
    }
    names, arrays = _read(path, variables)
    head = [name for name in variables if "/head/" in name]
    _drop_axes(arrays, head)
    has_head = bool(head) and all(
        name in arrays and arrays[name].shape == variables[name].shape
        for name in head
    )
    if not has_head:
        for name in head:
            del variables[name]
    _check(names, arrays, variables, f"{path} is not for {model.name}")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return has_head


def _read(path, wanted):
    """Return the names of all arrays, and those arrays that are wanted."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz archive, or only a part of one.")
    try:
        with np.load(path) as archive:
            names = archive.files
            return names, {n: archive[n] for n in names if n in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _drop_axes(arrays, head):
    """Make the head's kernel, a convolution of size 1, a matrix."""
    for name in head:
        if name in arrays and arrays[name].shape[:2] == (1, 1):
            arrays[name] = arrays[name][0, 0]


def _check(names, arrays, variables, problem):
    """Raise unless the file has the arrays of this network and no others."""
    missing = sorted(variables.keys() - arrays.keys())
    if missing:
        raise ValueError(
            f"{problem}: it lacks {len(missing)} of {len(variables)} arrays, "
            f"the first of them {missing[0]}."
        )
    for name, variable in variables.items():
        if arrays[name].shape != variable.shape:
            raise ValueError(
                f"{problem}: {name} must have the shape {variable.shape}. "
                f"Received: {arrays[name].shape}"
            )
    # A deeper network has all arrays of a shallower one, in equal shapes.
    further = sorted(
        name
        for name in names
        if name.startswith("resnet/block")
        and name.endswith(("/kernel", "/gamma", "/beta"))
        and name not in variables
    )
    if further:
        raise ValueError(
            f"{problem}: it has {len(further)} arrays more, the first of them "
            f"{further[0]}."
        )
