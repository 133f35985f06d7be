"""`separate`: replace convolutions by depthwise-separable ones.

A depthwise-separable convolution filters each channel on its own, and then
mixes the channels. It equals a convolution whose kernel has rank 1 in the slice
of each input channel.
"""

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill._graphs._copier import Copier
from keras_distill.compression._models import has_replaceable_kernel
from keras_distill.compression._models import model_to_rebuild


def separate(model: keras.Model) -> keras.Model:
    """Return a copy of a model with depthwise-separable convolutions.

    A Conv2D with kernel `w` becomes a SeparableConv2D with the same name,
    strides, padding, dilation, bias and activation. Its kernels `d` (depthwise)
    and `p` (pointwise) are the best approximation of `w`:

        w[:, :, i, :] ~ d[:, :, i, 0] p[0, 0, i, :]    for each input channel i

    This is the best rank-1 approximation of the slice, as a matrix of shape
    `(k * k, filters)`, by singular value decomposition. Both factors get the
    square root of the singular value. A kernel that is separable already is
    reproduced, up to rounding. Other kernels lose much accuracy, so train the
    copy. Both kernels get the initializer and regularizer of `w`.

    A convolution is replaced if its window is larger than 1 x 1, its strides
    are the same in both directions, and replacing it saves parameters. These
    layers are never replaced: convolutions with groups, with a kernel
    constraint, quantized layers, layers with LoRA, and subclasses of Conv2D.

    Source: [Howard et al. 2017](https://arxiv.org/abs/1704.04861),
    [Chollet 2017](https://arxiv.org/abs/1610.02357).

    Args:
        model: a built functional or Sequential model, with nested models or
            not; for a `Distiller`, its student. The model is not changed, and
            the copy shares no variable with it.

    Returns:
        A functional or Sequential model, not compiled, with the structure, the
        names, the dtype policies and the `trainable` flags of `model`. A
        subclass of these two classes is not kept.

    Raises:
        ValueError: if the model has no layer graph, or if layers share a
            variable.

    Example:

    ```python
    import keras
    from keras_distill.compression import separate

    teacher = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(64, 3, activation="relu"),
        ]
    )
    student = separate(teacher)
    print(teacher.count_params(), student.count_params())  # 19392 2555
    ```
    """
    model = model_to_rebuild("separate", model)

    def replace(layer):
        return [_separable(layer)] if _is_suitable(layer) else None

    copier = Copier(replace)
    copy = copier.copy(model)
    for layer, (new,) in copier.replaced.items():
        depthwise, pointwise = _factors(layer)
        new.depthwise_kernel.assign(depthwise)
        new.pointwise_kernel.assign(pointwise)
        if layer.use_bias:
            new.bias.assign(np.array(ops.convert_to_numpy(layer.bias)))
    return copy


def _is_suitable(layer):
    if type(layer) is not layers.Conv2D or not has_replaceable_kernel(layer):
        return False
    *_, inputs, outputs = layer.kernel.shape
    window = int(np.prod(layer.kernel_size))
    return (
        window > 1
        and len(set(layer.strides)) == 1
        and inputs * (window + outputs) < inputs * window * outputs
    )


def _separable(layer):
    config = layer.get_config()
    for name in ("groups", "kernel_constraint"):
        config.pop(name)
    for part in ("initializer", "regularizer"):
        value = config.pop(f"kernel_{part}")
        config |= {f"depthwise_{part}": value, f"pointwise_{part}": value}
    return layers.SeparableConv2D.from_config(config)


def _factors(layer):
    """Return the depthwise kernel and the pointwise kernel."""
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel), "float64")
    *window, inputs, outputs = kernel.shape
    slices = np.moveaxis(kernel, -2, 0).reshape(inputs, -1, outputs)
    u, s, v = np.linalg.svd(slices, full_matrices=False)
    root = np.sqrt(s[:, :1])  # (inputs, 1)
    depthwise = (u[:, :, 0] * root).T.reshape(*window, inputs, 1)
    return depthwise, (v[:, 0] * root).reshape(1, 1, inputs, outputs)
