"""CIFAR-10: a ResNet-56 teaches a ResNet-20, with crops, flips and MixUp.

    python examples/cifar10.py                    # downloads CIFAR-10
    python examples/cifar10.py --data FOLDER      # reads FOLDER

FOLDER holds cifar10.npz: per split, lossless WebP strips of images
(`webp_train`), where each strip begins (`offsets_train`) and labels
(`y_train`). If it holds cifar10_resnet56_state.npz and
cifar10_resnet20_state.npz as well, both networks start from these weights, of
https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2-Clause). Otherwise
the teacher is trained with labels first.

Takes about two hours on two CPU cores with pretrained networks.
"""

import argparse
import io
import itertools
import pathlib

import keras
import numpy as np
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import compare

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=pathlib.Path, help="folder of cifar10.npz")
parser.add_argument("--epochs", type=int, default=30)
options, _ = parser.parse_known_args()  # A notebook has other arguments.
keras.utils.set_random_seed(0)


# ## Load the images
def load(split):
    from PIL import Image

    with np.load(options.data / "cifar10.npz") as file:
        data = file[f"webp_{split}"].tobytes()
        ends, labels = file[f"offsets_{split}"], file[f"y_{split}"]
    strips = [
        np.asarray(Image.open(io.BytesIO(data[begin:end])).convert("RGB"))
        for begin, end in itertools.pairwise(ends)
    ]
    return np.concatenate(strips).reshape(-1, 32, 32, 3), labels


if options.data:
    (x, y), (x_test, y_test) = load("train"), load("test")
else:
    (x, y), (x_test, y_test) = keras.datasets.cifar10.load_data()
y, y_test = y.ravel().astype("int32"), y_test.ravel().astype("int32")


# ## Models: ResNets of https://arxiv.org/abs/1512.03385, section 4.2
def convolve(x, width, strides, name, number):
    """A convolution and a normalization, named as in the PyTorch state."""
    conv = {"use_bias": False, "name": f"{name}conv{number}"}
    norm = {"epsilon": 1e-5, "name": f"{name}bn{number}"}
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(width, 3, strides, **conv)(x)
    return layers.BatchNormalization(**norm)(x)


def resnet(depth):
    inputs = keras.Input((32, 32, 3))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = layers.Normalization(mean=255 * mean, variance=(255 * std) ** 2)(inputs)
    x = layers.ReLU()(convolve(x, 16, 1, "", 1))
    for stage, block in itertools.product((1, 2, 3), range((depth - 2) // 6)):
        width, name = 8 * 2**stage, f"layer{stage}_{block}_"
        shortcut, strides = x, 2 if stage > 1 and block == 0 else 1
        if strides == 2:  # Every second pixel, and channels of zeros.
            zeros = [[0, 0], [0, 0], [0, 0], [width // 4, width // 4]]
            shortcut = keras.ops.pad(x[:, ::2, ::2], zeros)
        x = layers.ReLU()(convolve(x, width, strides, name, 1))
        x = convolve(x, width, 1, name, 2)
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(10, name="linear")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


def load_weights(model, path):
    """Copy a PyTorch state into a ResNet."""
    parts = "weight", "bias", "running_mean", "running_var"
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # Outputs come last in Keras.
    with np.load(path) as state:
        for layer in model.layers:
            keys = [f"{layer.name.replace('_', '.')}.{part}" for part in parts]
            arrays = [state[key] for key in keys if key in state]
            layer.set_weights([x.transpose(axes[x.ndim]) for x in arrays])


teacher, student = resnet(56), resnet(20)
files = "cifar10_resnet56_state.npz", "cifar10_resnet20_state.npz"
if options.data and all((options.data / file).exists() for file in files):
    load_weights(teacher, options.data / files[0])
    load_weights(student, options.data / files[1])
else:
    flip = layers.RandomFlip("horizontal")
    augmented = keras.Sequential([keras.Input((32, 32, 3)), flip, teacher])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    augmented.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    augmented.fit(x, y, batch_size=128, epochs=options.epochs, verbose=2)
before = keras.models.clone_model(student)
before.set_weights(student.get_weights())

# ## Distil
augment = ConsistentAugment(
    [
        InceptionCrop(32, 32, area_range=(0.7, 1.0)),
        layers.RandomFlip("horizontal"),
        MixUp(alpha=0.3),
    ]
)
steps = options.epochs * -(-len(x) // 128)
# A warm-up keeps pretrained weights from being destroyed at the beginning.
rate = keras.optimizers.schedules.CosineDecay(
    0.0, steps, warmup_target=2e-3, warmup_steps=steps // 20 + 1
)
distiller = Distiller(student=student, teacher=teacher, augment=augment)
distiller.compile(keras.optimizers.Adam(rate), FunctionMatching(temperature=4))
distiller.fit(x, batch_size=128, epochs=options.epochs, verbose=2)

# ## Compare and save
models = {"teacher": teacher, "before": before, "distilled": student}
print(compare(models, (x_test, y_test), litert=()))
student.save("cifar10_student.keras")
