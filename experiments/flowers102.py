"""Flowers-102: function matching into a network eight times smaller.

    python experiments/flowers102.py --data FOLDER --mix --recorded-epochs 50
    python experiments/flowers102.py --data FOLDER --loss alone
    python experiments/flowers102.py --data FOLDER --teacher R101x3 \\
        --student R50x1 --size 128 --mix --epochs 10000

The teacher is a network trained on ImageNet and fine-tuned here on the 1,020
training images: a MobileNetV2 (normalizations folded, PyTorch layout) from
FOLDER/imagenet_mobilenetv2_nchw_npy.npz, or a BiT ResNet from
FOLDER/BiT-M-R101x3.npz. The student is a small ResNet that starts from random
weights, or a BiT ResNet from FOLDER/BiT-M-R50x1.npz.

Images come from FOLDER/flowers102_160.npz or, without `--data`, from
`tensorflow_datasets`. Settings are chosen on the official validation split
(`--validation`); otherwise the 6,149 test images are scored, once.

Source of the recipe: Beyer et al. 2022, https://arxiv.org/abs/2106.05237.
"""

import io
import itertools

import bit
import experiment
import keras
import numpy as np
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp

ARRAYS = ("jpeg", "offsets", "label", "split")
SPLITS = ("train", "val", "test")
CLASSES = 102
FULL = 160  # Pixels along the shorter side of the stored images.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Expansion, channels, blocks and strides of MobileNetV2's seven stages.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def load(options):
    """Return `((x, y), (x_scored, y_scored))`: central squares, uint8.

    Training images keep their 160 pixels, for the crops; the others have the
    networks' size.
    """
    scored = "val" if options.validation else "test"
    sizes = {"train": FULL, scored: options.size}
    if options.smoke and options.data is None:
        sides = (sizes["train"], sizes[scored])
        return experiment.random_data(*((n, n, 3) for n in sides), CLASSES)
    pictures = _from_tfds if options.data is None else _from_archive
    splits = []
    for name, size in sizes.items():
        x, y = zip(
            *(
                (_square(picture, size), label)
                for picture, label in pictures(options, name)
            )
        )
        splits.append((np.stack(x), np.array(y, "int32")))
    return splits


def _from_archive(options, split):
    """Yield `(PIL image, label)` of a split."""
    from PIL import Image

    data, offsets, labels, splits = experiment.arrays_in(
        options.data, "flowers102_160.npz", ARRAYS
    )
    data = data.tobytes()
    wanted = splits == SPLITS.index(split)
    places = itertools.compress(itertools.pairwise(offsets), wanted)
    for (begin, end), label in zip(places, labels[wanted]):
        yield Image.open(io.BytesIO(data[begin:end])), int(label)


def _from_tfds(options, split):
    try:
        import tensorflow_datasets
    except ImportError:
        raise SystemExit(
            "Without --data the images are downloaded with "
            "tensorflow_datasets: pip install tensorflow-datasets"
        ) from None
    from PIL import Image

    print("Loading oxford_flowers102 with tensorflow_datasets (330 MB, once).")
    names = dict(zip(SPLITS, ("train", "validation", "test")))
    dataset = tensorflow_datasets.load(
        "oxford_flowers102", split=names[split], as_supervised=True
    )
    for image, label in dataset.as_numpy_iterator():
        yield Image.fromarray(image), int(label)


def _square(picture, size):
    """Return the central square of a picture at `size` pixels."""
    from PIL import Image

    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    picture = picture.convert("RGB").crop(box)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def normalization():
    """Takes pixels from 0 to 255, so that every network here does."""
    return layers.Normalization(
        mean=[255 * value for value in MEAN],
        variance=[(255 * value) ** 2 for value in DEVIATION],
    )


def mobilenet_v2(options):
    """MobileNetV2 without normalizations, which its weights have inside.

    Source: Sandler et al. 2018, https://arxiv.org/abs/1801.04381.
    """
    inputs = keras.Input((options.size, options.size, 3))
    x = _convolve(normalization()(inputs), 32, 3, 2)
    for expansion, channels, blocks, strides in STAGES:
        for block in range(blocks):
            x = _inverted(x, expansion, channels, 1 if block else strides)
    x = layers.GlobalAveragePooling2D()(_convolve(x, 1280, 1, 1))
    x = layers.Dropout(0.2)(x)
    outputs = layers.Dense(CLASSES, dtype="float32")(x)
    model = keras.Model(inputs, outputs, name="mobilenet_v2")
    if options.data is not None:
        _load_mobilenet(model, options.data)
    return model


def _inverted(x, expansion, channels, strides):
    """An inverted residual: widen, convolve each channel, narrow."""
    shortcut = x
    if expansion > 1:
        x = _convolve(x, expansion * x.shape[-1], 1, 1)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.DepthwiseConv2D(3, strides)(x)
    x = layers.Conv2D(channels, 1)(layers.ReLU(6.0)(x))
    if strides == 1 and shortcut.shape[-1] == channels:
        x = layers.Add()([shortcut, x])
    return x


def _convolve(x, channels, size, strides):
    if size > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    return layers.ReLU(6.0)(layers.Conv2D(channels, size, strides)(x))


def _load_mobilenet(model, folder):
    """Set the convolutions; they are numbered in order, with gaps."""
    kinds = (layers.Conv2D, layers.DepthwiseConv2D)
    convolutions = [x for x in model.layers if isinstance(x, kinds)]
    file = "imagenet_mobilenetv2_nchw_npy.npz"
    arrays = experiment.arrays_in(folder, file, _in_order)
    if len(arrays) != 2 * len(convolutions):
        raise SystemExit(
            f"{file} must hold {len(convolutions)} convolutions, a kernel and "
            f"a bias each. Received: {len(arrays)} arrays"
        )
    for layer, bias, kernel in zip(convolutions, arrays[::2], arrays[1::2]):
        kernel = kernel.transpose(2, 3, 1, 0)  # From (out, in, height, width).
        if isinstance(layer, layers.DepthwiseConv2D):
            kernel = kernel.transpose(0, 1, 3, 2)
        layer.set_weights([kernel, bias])


def _in_order(names):
    """Return the names by number; `conv_0_bias` comes before its `weight`."""
    numbered = [name.split("_") for name in names if name.startswith("conv_")]
    numbered.sort(key=lambda parts: (int(parts[1]), parts[2]))
    return ["_".join(parts) for parts in numbered]


def small_resnet(options):
    """Five stages of one residual block, 16 to 128 channels."""
    inputs = keras.Input((options.size, options.size, 3))
    x = _normalized(normalization()(inputs), 16, 3, 2)
    for width in (16, 32, 64, 128):
        strides = 1 if width == 16 else 2
        shortcut = x
        if strides > 1:
            shortcut = _normalized(x, width, 1, strides, activate=False)
        x = _normalized(x, width, 3, strides)
        x = _normalized(x, width, 3, 1, activate=False)
        x = layers.ReLU()(layers.Add()([shortcut, x]))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(CLASSES)(x)
    return keras.Model(inputs, outputs, name="small_resnet")


def _normalized(x, width, size, strides, activate=True):
    x = layers.Conv2D(width, size, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if activate else x


def views(options, mix):
    """Inception crops and flips, and MixUp for function matching."""
    chain = [
        InceptionCrop(
            options.size, options.size, area_range=(options.smallest_area, 1.0)
        ),
        layers.RandomFlip("horizontal"),
        *experiment.shifts(options),
    ]
    if mix:
        chain.append(MixUp(mix))
    return ConsistentAugment(chain, seed=experiment.view_seed(options))


def network(name, options):
    """Return a network by its name, with pretrained weights where it has."""
    if name == "mobilenet_v2":
        return mobilenet_v2(options)
    if name == "small_resnet":
        return small_resnet(options)
    return big_transfer(name, options)


def big_transfer(name, options):
    """Return a BiT ResNet that takes pixels from 0 to 255."""
    shape = (options.size, options.size, 3)
    resnet = bit.bit_resnet(name, CLASSES, shape)
    if options.data is not None:
        bit.load_checkpoint(resnet, options.data / f"BiT-M-{name}.npz")
    inputs = keras.Input(shape)
    outputs = resnet(bit.rescaling(255)(inputs))
    return keras.Model(inputs, outputs, name=name)


def the_teacher(options, data, scored):
    """Return the teacher, fine-tuned with labels; one for all seeds."""
    settings = experiment.for_teacher(options)
    name = f"teacher_{options.teacher}_{options.size}"
    return experiment.trained(
        name,
        lambda: experiment.in_policy(
            options.teacher_dtype, lambda: network(options.teacher, options)
        ),
        lambda teacher: experiment.train_alone(
            teacher, views(settings, False), data, scored, name, settings
        ),
        settings,
    )


def main():
    parser = experiment.parser_of(__doc__, epochs=300)
    parser.set_defaults(
        batch_size=60,
        teacher_batch_size=60,
        smallest_area=0.05,
        teacher_epochs=40,
        teacher_learning_rate=3e-4,
        teacher_smallest_area=0.3,
    )
    names = ("mobilenet_v2", *bit.VARIANTS)
    parser.add_argument("--teacher", choices=names, default="mobilenet_v2")
    names = ("small_resnet", *bit.VARIANTS)
    parser.add_argument("--student", choices=names, default="small_resnet")
    parser.add_argument("--size", type=int, default=96)
    options = experiment.parse(parser)
    data, scored = load(options)
    experiment.run(
        options,
        data,
        scored,
        views=lambda: views(options, options.mix),
        student=lambda: network(options.student, options),
        teacher=lambda: the_teacher(options, data, scored),
    )


if __name__ == "__main__":
    main()
