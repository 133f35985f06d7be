"""CIFAR-10: a CNN of 25 thousand parameters, or a ResNet-20, learns by teacher.

    python experiments/cifar10.py                        # downloads CIFAR-10
    python experiments/cifar10.py --loss alone           # labels, no teacher
    python experiments/cifar10.py --data FOLDER --teacher resnet56 --mix \\
        --recorded-epochs 20 --epochs 200             # patience
    python experiments/cifar10.py --data FOLDER --teacher resnet56 \\
        --student resnet20 --smallest-area 1 --shift 0.125 --mix 0.3 \\
        --temperature 4 --learning-rate 2e-3 --epochs 30

The pair of the Keras example for distillation: convolutions 256 and 512 wide
teach 16 and 32, with an activation after the second as well; that teacher is
trained first. Other teachers are pretrained ResNets, read from
FOLDER/cifar10_resnet56_state.npz (names and layout of the PyTorch state that
akamaster/pytorch_resnet_cifar10 publishes). The student ResNet-20 starts from
such weights as well.
"""

import io
import itertools

import experiment
import keras
import numpy as np
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp

HELD_OUT = 5000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(options):
    """Return CIFAR-10 as `((x, y), (x_test, y_test))`, uint8 and int32."""
    if options.data is None and options.smoke:
        return experiment.random_data((32, 32, 3), (32, 32, 3), 10)
    if options.data is None:
        print("Loading CIFAR-10 with keras.datasets.cifar10 (170 MB, once).")
        splits = keras.datasets.cifar10.load_data()
        return tuple((x, y[:, 0].astype("int32")) for x, y in splits)
    names = [f"{a}_{s}" for s in ("train", "test") for a in ARRAYS]
    arrays = experiment.arrays_in(options.data, "cifar10.npz", names)
    return tuple(
        (_strips(data, offsets), labels.astype("int32"))
        for data, offsets, labels in (arrays[:3], arrays[3:])
    )


# The images are lossless WebP strips, 32 pixels wide.
ARRAYS = ("webp", "offsets", "y")


def _strips(data, offsets):
    from PIL import Image

    data = data.tobytes()
    strips = [
        np.asarray(Image.open(io.BytesIO(data[begin:end])).convert("RGB"))
        for begin, end in itertools.pairwise(offsets)
    ]
    return np.concatenate([strip.reshape(-1, 32, 32, 3) for strip in strips])


def normalization():
    """Takes pixels from 0 to 255, so that every network here does."""
    return layers.Normalization(
        mean=[255 * value for value in MEAN],
        variance=[(255 * value) ** 2 for value in DEVIATION],
    )


def cnn(widths, name):
    """Two convolutions of stride 2 and a dense layer that returns logits."""
    first, second = widths
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            normalization(),
            layers.Conv2D(first, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.MaxPooling2D(2, strides=1, padding="same"),
            layers.Conv2D(second, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(10, dtype="float32"),
        ],
        name=name,
    )


def resnet(depth, name):
    """The CIFAR ResNet of `6 n + 2` layers with shortcuts free of weights.

    Source: He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2.
    """
    inputs = keras.Input((32, 32, 3))
    x = normalization()(inputs)
    x = layers.ReLU()(_convolve(x, 16, 1, "conv1", "bn1"))
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            strides = 2 if stage > 1 and block == 0 else 1
            x = _block(x, width, strides, f"layer{stage}_{block}")
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(10, dtype="float32", name="linear")(x)
    return keras.Model(inputs, outputs, name=name)


def _block(x, width, strides, name):
    shortcut = x if strides == 1 else _every_second(x, width, name)
    x = _convolve(x, width, strides, f"{name}_conv1", f"{name}_bn1")
    x = _convolve(layers.ReLU()(x), width, 1, f"{name}_conv2", f"{name}_bn2")
    return layers.ReLU(name=name)(layers.Add()([x, shortcut]))


def _convolve(x, width, strides, name, norm_name):
    if strides > 1:  # "same" would pad below and right only.
        x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(
        width,
        3,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=norm_name
    )(x)


def _every_second(x, width, name):
    """Every second pixel, between two quarters of channels that are zero.

    A fixed convolution does it, which any tool that reads a model understands.
    """
    narrow = x.shape[-1]
    shortcut = layers.Conv2D(
        width, 1, strides=2, use_bias=False, trainable=False, name=f"{name}_pad"
    )
    x = shortcut(x)
    kernel = np.zeros((1, 1, narrow, width), "float32")
    kernel[0, 0, range(narrow), range(width // 4, width // 4 + narrow)] = 1.0
    shortcut.set_weights([kernel])
    return x


def load_state(model, folder, file):
    """Set a ResNet's weights from a PyTorch state saved as `.npz`."""
    keys = {}
    for layer in model.layers:
        if not layer.weights or layer.name.endswith("_pad"):
            continue
        key = layer.name
        if key.startswith("layer"):
            stage, block, kind = key.split("_")
            key = f"{stage}.{block}.{kind}"
        if isinstance(layer, layers.Conv2D):
            keys[layer] = [f"{key}.weight"]
        elif isinstance(layer, layers.Dense):
            keys[layer] = [f"{key}.weight", f"{key}.bias"]
        elif isinstance(layer, layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            keys[layer] = [f"{key}.{part}" for part in parts]
    names = [name for group in keys.values() for name in group]
    arrays = dict(zip(names, experiment.arrays_in(folder, file, names)))
    for layer, group in keys.items():
        layer.set_weights([_layout(arrays[name]) for name in group])
    return model


def _layout(array):
    """Return a PyTorch array in Keras's layout."""
    if array.ndim == 4:  # (out, in, height, width)
        return array.transpose(2, 3, 1, 0)
    return array.T  # (out, in), or a vector


def pretrained(depth, folder):
    name = f"resnet{depth}"
    if folder is None:
        raise SystemExit(
            f"The pretrained {name} is read from the folder that `--data` "
            f"names, with cifar10_{name}_state.npz in it. Received no --data."
        )
    return load_state(resnet(depth, name), folder, f"cifar10_{name}_state.npz")


def views(options):
    """Random crops and flips; shifts and MixUp if asked for."""
    chain = [
        InceptionCrop(
            32,
            32,
            area_range=(options.smallest_area, 1.0),
            aspect_ratio_range=(0.8, 1.25),
        ),
        layers.RandomFlip("horizontal"),
        *experiment.shifts(options),
    ]
    if options.mix:
        chain.append(MixUp(options.mix))
    return ConsistentAugment(chain, seed=experiment.view_seed(options))


def the_teacher(options, data, scored):
    """Return a pretrained teacher, or the CNN, trained with labels."""
    if options.teacher != "cnn":
        depth = int(options.teacher.removeprefix("resnet"))
        return experiment.in_policy(
            options.teacher_dtype, lambda: pretrained(depth, options.data)
        )
    settings = experiment.for_teacher(options)
    return experiment.trained(
        "teacher",
        lambda: experiment.in_policy(
            options.teacher_dtype, lambda: cnn((256, 512), "teacher")
        ),
        lambda network: experiment.train_alone(
            network, views(settings), data, scored, "teacher", settings
        ),
        settings,
    )


def the_student(options):
    """Return a new CNN, or the smallest pretrained ResNet."""
    return experiment.in_policy(
        options.student_dtype,
        lambda: (
            cnn((16, 32), "student")
            if options.student == "cnn"
            else pretrained(20, options.data)
        ),
    )


def main():
    parser = experiment.parser_of(__doc__, epochs=10)
    parser.add_argument("--student", choices=("cnn", "resnet20"), default="cnn")
    parser.add_argument(
        "--teacher", choices=("cnn", "resnet20", "resnet56"), default="cnn"
    )
    parser.add_argument("--student-dtype", default="float32")
    options = experiment.parse(parser)
    if options.student != "cnn":  # Its first weights are given.
        options.recording_seed = options.seed
    data, scored = experiment.split(load(options), options, HELD_OUT)
    experiment.run(
        options,
        data,
        scored,
        views=lambda: views(options),
        student=lambda: the_student(options),
        teacher=lambda: the_teacher(options, data, scored),
    )


if __name__ == "__main__":
    main()
