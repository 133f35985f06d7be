"""One large pair on an accelerator: images per second and utilisation.

    KERAS_BACKEND=jax python -m benchmarks.gpu --peak-tflops 989

A ResNet-50 student learns at 128 pixels from a teacher of four times its cost,
the mean of two ResNet-101, in batches of 512 and mixed precision. The step is
timed by turns with a hand-written loop of the same backend. Model FLOP/s are
those that the networks need (one forward of the teacher, one forward and one
backward of the student), however they are computed; `--peak-tflops` is what the
maker promises for dense bfloat16 products (989 for an H100 SXM).
"""

import argparse
import json
import math
import pathlib

import keras

from benchmarks import models
from benchmarks import setups
from benchmarks.run import machine
from benchmarks.timing import compare

RESULTS = pathlib.Path(__file__).parent / "gpu.json"
GOAL = 0.4


def pair(size, batch, smoke):
    """Return ResNet-50 and its teacher; tiny ones to see that it runs."""
    if smoke:
        return models.pairs(smoke)["imagenet"]
    return models.Pair(
        lambda: _twins(size),
        lambda: models.application(keras.applications.ResNet50, size, 1000),
        size,
        batch,
        1000,
    )


def _twins(size):
    """A teacher of two networks, that returns the mean of their logits."""
    inputs = keras.Input((size, size, 3))
    members = [
        models.application(keras.applications.ResNet101, size, 1000)
        for _ in range(2)
    ]
    for number, member in enumerate(members):
        member.name = f"member_{number}"
    outputs = keras.layers.Average()([member(inputs) for member in members])
    return keras.Model(inputs, outputs)


def forward_flops(model):
    """Return the FLOPs of one image: twice the products of all kernels."""
    return 2 * sum(_products(layer) for layer in model._flatten_layers())


def _products(layer):
    """Return how many products a layer's kernel takes part in, per image."""
    if not isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
        return 0
    positions = 1
    if isinstance(layer, keras.layers.Conv2D):
        shape = layer.compute_output_shape(layer.input.shape)
        axes = slice(1, 3)
        if layer.data_format == "channels_first":
            axes = slice(2, 4)
        positions = math.prod(shape[axes])
    return positions * math.prod(layer.kernel.shape)


def measure(options):
    """Return images per second, utilisation and the ratio to a loop by hand."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    chosen = pair(options.size, options.batch_size, options.smoke)
    teacher = forward_flops(chosen.teacher())
    student = forward_flops(chosen.student())
    measured = compare(
        lambda: setups.distiller(chosen),
        lambda: setups.hand_written(chosen),
        instances=2,
        seconds=10.0,
        smoke=options.smoke,
    )
    speed = 1000 * chosen.batch / measured["milliseconds"][0]
    achieved = speed * (teacher + 3 * student) / 1e12
    result = {
        **measured,
        "images_per_second": round(speed, 1),
        "teacher_cost": round(teacher / student, 2),
        "model_tflops_per_second": round(achieved, 3),
    }
    if options.peak_tflops is not None:
        share = achieved / options.peak_tflops
        result |= {"utilisation": round(share, 4), "goal": GOAL}
    return result


def accelerator():
    """Return the name of what computes, as the backend knows it."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    if keras.backend.backend() == "torch":
        import torch

        has_cuda = torch.cuda.is_available()
        return torch.cuda.get_device_name() if has_cuda else "CPU"
    return ", ".join(keras.distribution.list_devices())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--smoke", action="store_true", help="tiny, one round")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    results = {}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    result = {
        "accelerator": accelerator(),
        **measure(options),
        "machine": machine(),
    }
    results[keras.backend.backend()] = result
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
