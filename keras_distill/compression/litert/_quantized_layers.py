"""Layers that round like the layers of an int8 file.

They are trained in float32 and round the same values as a LiteRT file: kernels,
with one scale per output channel, and activations, with one range per tensor.
Biases have 32 bits in the file and are not rounded. Gradients pass through the
rounding unchanged (straight-through estimator, Bengio et al. 2013,
https://arxiv.org/abs/1308.3432).
"""

from typing import Any

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_distill import _arguments
from keras_distill._typing import Tensor

# If a range or a kernel is zero everywhere, it still has a positive scale.
_SMALLEST_RANGE = 1e-6


@keras.saving.register_keras_serializable(package="keras_distill")
class FakeQuantization(layers.Layer):
    """Rounds to 256 values of a range that is tracked in training.

        scale = (maximum - minimum) / 255
        x -> scale * round(clip(x, minimum, maximum) / scale)

    The range is shifted slightly so that zero is one of the values. The
    gradient is zero outside of the range. `minimum` and `maximum` are averages
    over the batches with `training=True`: the mean of all batches at first, and
    then a moving average:

        minimum_t = minimum_{t-1} + rate * (min(x) - minimum_{t-1})
        rate = max(1 - momentum, 1 / t)

    Nothing is rounded before the first of these batches.

    Args:
        momentum: float in [0, 1], the momentum of the moving average.
        fixed_range: `(minimum, maximum)` with `minimum <= 0 <= maximum`, a
            range that is not tracked; or `None`.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    # The tools for graphs treat it like an activation.
    is_elementwise = True

    def __init__(
        self,
        momentum: float = 0.99,
        fixed_range: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.momentum = _arguments.fraction("momentum", momentum)
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)
        # Whether each call widens the range to include its inputs.
        self.is_calibrating = False
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if self.fixed_range is None:
            self.minimum, self.maximum, self.steps = (
                self.add_weight(
                    name=name,
                    shape=(),
                    initializer="zeros",
                    dtype="float32",
                    trainable=False,
                    aggregation="mean",
                )
                for name in ("minimum", "maximum", "steps")
            )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if self.fixed_range is not None:
            return _rounded(inputs, *self.fixed_range)
        if self.is_calibrating:
            self._widen(inputs)
        elif training:
            self._track(ops.stop_gradient(inputs))
        minimum = ops.convert_to_tensor(self.minimum)
        maximum = ops.maximum(self.maximum, minimum + _SMALLEST_RANGE)
        rounded = _rounded(inputs, minimum, maximum)
        return ops.where(self.steps > 0, rounded, inputs)

    def _track(self, inputs):
        self.steps.assign_add(1.0)
        rate = ops.maximum(1.0 - self.momentum, 1.0 / self.steps)
        lowest = ops.minimum(ops.min(inputs), 0.0)
        highest = ops.maximum(ops.max(inputs), 0.0)
        self.minimum.assign_add(rate * (lowest - self.minimum))
        self.maximum.assign_add(rate * (highest - self.maximum))

    def _widen(self, inputs):
        self.steps.assign_add(1.0)
        self.minimum.assign(ops.minimum(self.minimum, ops.min(inputs)))
        self.maximum.assign(ops.maximum(self.maximum, ops.max(inputs)))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def tracked_range(self) -> tuple[float, float]:
        """Return `(minimum, maximum)` as floats.

        Raises:
            ValueError: if there was no batch with `training=True`.
        """
        if self.fixed_range is not None:
            minimum, maximum = self.fixed_range
            return minimum, maximum
        if float(ops.convert_to_numpy(self.steps)) == 0:
            raise ValueError(
                f"The layer {self.name!r} has no range, because it was never "
                "called with `training=True`. Train the model that "
                "`quantize_aware` returned with `fit()` before you export it."
            )
        minimum = float(ops.convert_to_numpy(self.minimum))
        maximum = float(ops.convert_to_numpy(self.maximum))
        return minimum, max(maximum, minimum + _SMALLEST_RANGE)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "fixed_range": self.fixed_range,
        }


def _rounded(inputs, minimum, maximum):
    # On TensorFlow, the converter reads ranges from this operation.
    return keras.quantizers.fake_quant_with_min_max_vars(
        inputs, minimum, maximum
    )


class _RoundedKernel(layers.Layer):
    """A layer whose kernel is rounded to 255 values, as in the file.

    scale = max(|w|) / 127    for each output channel
    w -> scale * round(w / scale)
    """

    def rounded_kernel(self) -> Tensor:
        """Return the rounded kernel, with a straight-through gradient."""
        kernel = self.kernel
        largest = ops.max(ops.abs(kernel), self._window(), keepdims=True)
        scale = ops.maximum(largest, _SMALLEST_RANGE) / 127.0
        rounded = ops.round(kernel / scale) * scale
        return kernel + ops.stop_gradient(rounded - kernel)

    def _window(self):
        """Return the axes of the kernel that share one scale."""
        return tuple(range(len(self.kernel.shape) - 1))


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedDense(_RoundedKernel, layers.Dense):
    """A Dense layer with a rounded kernel."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = ops.matmul(inputs, self.rounded_kernel())
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return self.activation(outputs)


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedConv1D(_RoundedKernel, layers.Conv1D):
    """A Conv1D with a rounded kernel."""

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return super().convolution_op(inputs, self.rounded_kernel())


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedConv2D(_RoundedKernel, layers.Conv2D):
    """A Conv2D with a rounded kernel."""

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return super().convolution_op(inputs, self.rounded_kernel())


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedDepthwiseConv2D(_RoundedKernel, layers.DepthwiseConv2D):
    """A DepthwiseConv2D with a rounded kernel."""

    def call(self, inputs: Tensor) -> Tensor:
        outputs = ops.depthwise_conv(
            inputs,
            self.rounded_kernel(),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.use_bias:
            first = self.data_format == "channels_first"
            shape = (1, -1, 1, 1) if first else (1, 1, 1, -1)
            outputs = ops.add(outputs, ops.reshape(self.bias, shape))
        return self.activation(outputs)

    def _window(self):
        return (0, 1)  # (height, width, inputs, multiplier)


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedEinsumDense(_RoundedKernel, layers.EinsumDense):
    """An EinsumDense with a rounded kernel, if `is_projection` is true."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        outputs = ops.einsum(self.equation, inputs, self.rounded_kernel())
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def _window(self):
        kernel, outputs = _kernel_and_outputs(self.equation)
        return tuple(i for i, name in enumerate(kernel) if name not in outputs)


def _kernel_and_outputs(equation):
    read, outputs = equation.replace(" ", "").split("->")
    return read.split(",")[1], outputs


def is_projection(layer: layers.EinsumDense) -> bool:
    """Return whether an EinsumDense is a Dense layer on reshaped tensors.

    Each axis of its kernel is an axis of the inputs (a sum) or of the outputs,
    not of both. In the file, other EinsumDense layers are products of two
    tensors, with one scale for the kernel.
    """
    inputs = layer.equation.replace(" ", "").split(",")[0]
    kernel, outputs = _kernel_and_outputs(layer.equation)
    return all((name in inputs) != (name in outputs) for name in kernel)


QUANTIZED = {
    layers.Conv1D: QuantizedConv1D,
    layers.Conv2D: QuantizedConv2D,
    layers.Dense: QuantizedDense,
    layers.DepthwiseConv2D: QuantizedDepthwiseConv2D,
    layers.EinsumDense: QuantizedEinsumDense,
}
_PLAIN = {quantized: plain for plain, quantized in QUANTIZED.items()}


def quantized(layer: layers.Layer) -> layers.Layer:
    """Return the quantized layer for a layer whose class is in `QUANTIZED`."""
    config = layer.get_config() | {"dtype": "float32"}
    return QUANTIZED[type(layer)].from_config(config)


def separated(layer: layers.SeparableConv2D) -> list[layers.Layer]:
    """Return a SeparableConv2D as two quantized layers."""
    config = layer.get_config() | {"dtype": "float32"}
    window = ("kernel_size", "strides", "padding", "dilation_rate")
    shared = ("data_format", "trainable", "dtype")
    outputs = ("name", "filters", "activation", "use_bias")
    outputs += tuple(name for name in config if name.startswith("bias_"))
    depthwise = {name: config[name] for name in (*window, *shared)}
    pointwise = {name: config[name] for name in (*outputs, *shared)}
    for part in ("regularizer", "constraint"):
        depthwise[f"depthwise_{part}"] = config[f"depthwise_{part}"]
        pointwise[f"kernel_{part}"] = config[f"pointwise_{part}"]
    return [
        QuantizedDepthwiseConv2D(
            name=f"{layer.name}_depthwise",
            depth_multiplier=layer.depth_multiplier,
            use_bias=False,
            **depthwise,
        ),
        QuantizedConv2D(kernel_size=1, **pointwise),
    ]


def set_weights(layer: layers.Layer, new: list[layers.Layer]) -> None:
    """Copy the weights of a layer to the layers that replace it, in order."""
    weights = layer.get_weights()
    for part in new:
        if hasattr(part, "plain_weights"):
            for weight, value in zip(part.plain_weights(), weights):
                weight.assign(value)
        elif isinstance(part, _RoundedKernel):
            part.set_weights(weights[: len(part.weights)])
            weights = weights[len(part.weights) :]


def as_constant(layer: layers.Layer) -> layers.Layer | None:
    """Return the layer for a file: with a fixed range or a plain kernel.

    Returns None for a layer without ranges and rounded kernel.
    """
    if type(layer) is FakeQuantization:
        return FakeQuantization(
            fixed_range=layer.tracked_range(), name=layer.name
        )
    if type(layer) in _PLAIN:
        return _PLAIN[type(layer)].from_config(layer.get_config())
    return layer.as_constant() if hasattr(layer, "as_constant") else None


def set_rounded_weights(layer: layers.Layer, new: layers.Layer) -> None:
    """Set the weights of the layer that `as_constant` returned."""
    if type(layer) in _PLAIN:
        kernel = ops.convert_to_numpy(layer.rounded_kernel())
        _, *bias = layer.get_weights()
        new.set_weights([np.array(kernel), *bias])
    elif hasattr(layer, "constant_weights"):
        new.set_weights(layer.constant_weights())
