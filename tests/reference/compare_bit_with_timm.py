"""Compares `experiments/bit.py` with timm on checkpoints of the same layout.

The checkpoints hold random weights; timm reads them with its own loader. timm
needs torchvision, and that a build of PyTorch to match, so neither is a
dependency of the suite. This is run by hand, from the root of the checkout:

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install -c constraints.txt -e '.[jax,torch]' \\
        timm==1.0.31 torchvision
    KERAS_BACKEND=jax /tmp/peers/bin/python \\
        tests/reference/compare_bit_with_timm.py

It prints the largest difference of the logits, relative to the largest logit,
and fails if one is above 1e-4. timm's kernel epsilon is 1e-8; that of the
published networks, in PyTorch, TensorFlow and JAX, is 1e-10, and so is ours. It
is set to 1e-10 in timm, too. What its own value, Keras's epsilon of groups or
another padding would change is printed, and must be above 1e-4.

R101x3 and its copies need 8 GB of memory.
"""

# Imported after TensorFlow, PyTorch crashes the process.
import torch  # noqa: I001
import timm
import argparse
import gc
import pathlib
import sys
import tempfile

import keras
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "tests")]

import bit  # noqa: E402
from reference import bit as reference  # noqa: E402

CLASSES = 10
SIZES = (64, 97)
BOUND = 1e-4


def kernel_epsilon(network, value):
    for module in network.modules():
        if isinstance(module, timm.layers.StdConv2d):
            module.eps = value


def group_epsilon(network, value):
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = value


def padding_of_the_maximum(network, value):
    network.stem.pad = torch.nn.ConstantPad2d(1, value)


def padding_of_the_root(network, sides):
    network.stem.conv.padding = 0
    network.stem.conv = torch.nn.Sequential(
        torch.nn.ZeroPad2d(sides), network.stem.conv
    )


# Name, what it changes in timm's network, and the value.
MISTAKES = (
    ("kernel epsilon 1e-8", kernel_epsilon, 1e-8),
    ("group epsilon 1e-3", group_epsilon, 1e-3),
    ("maximum padded with -inf", padding_of_the_maximum, -np.inf),
    ("root padded as 'same'", padding_of_the_root, (2, 3, 2, 3)),
)


def timm_logits(network, x):
    with torch.no_grad():
        return network(torch.tensor(x.transpose(0, 3, 1, 2))).cpu().numpy()


def difference(actual, expected):
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def networks(name, folder):
    """Return the Keras model and timm's, both from one file."""
    path = pathlib.Path(folder) / f"{name}.npz"
    np.savez(path, **reference.random_checkpoint(*bit.VARIANTS[name], CLASSES))
    model = bit.bit_resnet(name, CLASSES)
    if not bit.load_checkpoint(model, path):
        sys.exit("The head was not loaded.")
    network = timm.create_model(
        f"resnetv2_{name.removeprefix('R')}_bit", num_classes=CLASSES
    )
    network.load_pretrained(str(path))
    kernel_epsilon(network.eval(), 1e-10)
    path.unlink()
    return model, network


def compare(name, folder):
    """Yield `(what, difference, whether it may be above the bound)`."""
    model, network = networks(name, folder)
    count = sum(p.numel() for p in network.parameters())
    if model.count_params() != count:
        sys.exit(f"timm has {count} parameters, {name} {model.count_params()}.")
    answers = {}
    for size in SIZES:
        x = reference.faint_images(size)
        answers[size] = keras.ops.convert_to_numpy(model(x, training=False))
        found = difference(answers[size], timm_logits(network, x))
        yield f"{name}, {size} pixels", found, False
    x = reference.faint_images(SIZES[0])
    for mistake, change, value in MISTAKES:
        change(network, value)
        found = difference(answers[SIZES[0]], timm_logits(network, x))
        yield f"{name}, {SIZES[0]} pixels, {mistake}", found, True
        kernel_epsilon(network, 1e-10)
        group_epsilon(network, 1e-5)
        padding_of_the_maximum(network, 0.0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["R50x1", "R101x3"])
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().names:
            for what, found, mistaken in compare(name, folder):
                print(f"{what:50} {found:.1e}", flush=True)
                if (found > BOUND) != mistaken:
                    wrong.append(what)
            gc.collect()
    print(f"backend: {keras.backend.backend()}, timm {timm.__version__}")
    if wrong:
        sys.exit(f"On the wrong side of {BOUND}: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
