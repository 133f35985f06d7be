"""Flowers-102: function matching with Inception crops, MixUp and a recording.

A MobileNetV2, trained on ImageNet, gets a new last layer for 102 kinds of
flowers, trained with 1,020 images. A small ResNet with random weights learns
from its recorded outputs, without labels. This is the recipe of
https://arxiv.org/abs/2106.05237 at a small size: the paper trains for
thousands of epochs.

    python examples/flowers102.py                  # downloads the images
    python examples/flowers102.py --data FOLDER    # reads FOLDER

The download needs `pip install tensorflow-datasets`. FOLDER holds
flowers102_160.npz: JPEG files in one array (`jpeg`), where each begins
(`offsets`), `label` and `split` (0 training, 2 test). The weights of the
teacher are downloaded, unless FOLDER holds them as mobilenet_v2.weights.h5.

Takes about ten minutes on two CPU cores.
"""

import argparse
import io
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
from keras_distill import record_teacher

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=pathlib.Path, help="folder of the files")
parser.add_argument("--epochs", type=int, default=150)
options, _ = parser.parse_known_args()  # A notebook has other arguments.
keras.utils.set_random_seed(0)
SIZE, FULL = 96, 160  # Pixels of a network's input, and of a training image.
SPLITS = {"train": 0, "test": 2}


# ## Load the images: central squares
def load(split, size):
    from PIL import Image

    if options.data:
        with np.load(options.data / "flowers102_160.npz") as file:
            chosen = np.flatnonzero(file["split"] == SPLITS[split])
            data, ends = file["jpeg"].tobytes(), file["offsets"]
            labels = file["label"][chosen]
        files = [io.BytesIO(data[ends[i] : ends[i + 1]]) for i in chosen]
        pictures = (Image.open(file).convert("RGB") for file in files)
    else:
        import tensorflow_datasets as tfds

        rows = list(tfds.load("oxford_flowers102", split=split))
        labels = np.array([row["label"] for row in rows])
        pictures = (Image.fromarray(row["image"].numpy()) for row in rows)
    images = []
    for picture in pictures:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        images.append(np.asarray(picture.resize((size, size), box=box)))
    return np.stack(images), labels.astype("int32")


(x, y), (x_test, y_test) = load("train", FULL), load("test", SIZE)


# ## The teacher: MobileNetV2 up to its features, and a new last layer
weights = (options.data or pathlib.Path(".")) / "mobilenet_v2.weights.h5"
base = keras.applications.MobileNetV2(
    input_shape=(SIZE, SIZE, 3),
    include_top=False,
    pooling="avg",
    weights=str(weights) if weights.exists() else "imagenet",
)
base.trainable = False
teacher = keras.Sequential(
    [
        keras.Input((SIZE, SIZE, 3)),
        layers.Rescaling(1 / 127.5, offset=-1.0),
        base,
        layers.Dropout(0.2),
        layers.Dense(102),
    ]
)


def views(smallest_area, *mix):
    crop = InceptionCrop(SIZE, SIZE, area_range=(smallest_area, 1.0))
    return ConsistentAugment([crop, layers.RandomFlip("horizontal"), *mix])


resize = layers.Resizing(SIZE, SIZE)  # Images that are not cropped.
augmented = keras.Sequential([views(0.3), resize, teacher])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
augmented.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
augmented.fit(x, y, batch_size=64, epochs=1 + options.epochs // 2, verbose=2)

# ## Record the teacher, for a fifth of the epochs
augment = views(0.05, MixUp())
given = {"augment": augment, "batch_size": 64}
epochs = 1 + options.epochs // 5
recording = record_teacher(teacher, x, "recording", epochs=epochs, **given)


# ## The student: four residual blocks
def convolve(x, width, size, strides=1):
    conv = {"padding": "same", "use_bias": False}
    x = layers.Conv2D(width, size, strides, **conv)(x)
    return layers.BatchNormalization(momentum=0.9)(x)


inputs = keras.Input((SIZE, SIZE, 3))
h = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
h = layers.ReLU()(convolve(h, 16, 3, 2))
for width in (16, 32, 64, 128):
    shortcut = convolve(h, width, 1, 2)
    h = layers.ReLU()(convolve(h, width, 3, 2))
    h = layers.ReLU()(layers.Add()([shortcut, convolve(h, width, 3)]))
outputs = layers.Dense(102)(layers.GlobalAveragePooling2D()(h))
student = keras.Model(inputs, outputs, name="small_resnet")

# ## Distil from the recording
rate = keras.optimizers.schedules.CosineDecay(3e-3, options.epochs * 16)
distiller = Distiller(student=student, teacher=recording, augment=augment)
distiller.compile(keras.optimizers.AdamW(rate), FunctionMatching())
distiller.fit(x, epochs=options.epochs, verbose=2)

# ## Compare and save
models = {"teacher": teacher, "student": student}
print(compare(models, (x_test, y_test), litert=()))
student.save("flowers102_student.keras")
