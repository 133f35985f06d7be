"""MNIST: a CNN of 50 thousand parameters teaches one of 9 thousand.

The teacher learns from labels. One student learns from labels too, the other
from the teacher alone. All see the same kind of random views.

    python examples/mnist.py                    # downloads MNIST
    python examples/mnist.py --data FOLDER      # reads FOLDER/mnist.npz

The file holds `x_train`, `y_train`, `x_test` and `y_test`, as the one of Keras.
Takes three minutes on two CPU cores.
"""

import argparse
import pathlib

import keras
import numpy as np
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import TeacherAgreement
from keras_distill import compare

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=pathlib.Path, help="folder of mnist.npz")
parser.add_argument("--epochs", type=int, default=10)
options, _ = parser.parse_known_args()  # A notebook has other arguments.

# ## Load the images
keras.utils.set_random_seed(0)
if options.data:
    with np.load(options.data / "mnist.npz") as file:
        names = "x_train", "y_train", "x_test", "y_test"
        x, y, x_test, y_test = (file[name] for name in names)
else:
    (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
x, x_test = x[..., None], x_test[..., None]
y, y_test = y.astype("int32"), y_test.astype("int32")


# ## Models and views
def cnn(width, name):
    """Two convolutions of stride 2, and a dense layer that returns logits."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(2 * width, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name=name,
    )


def views():
    """Crops show a digit larger, and translations move it."""
    crop = InceptionCrop(
        28, 28, area_range=(0.6, 1.0), aspect_ratio_range=(0.8, 1.25)
    )
    shift = layers.RandomTranslation(0.06, 0.06, fill_mode="constant")
    return ConsistentAugment([crop, shift])


def optimizer():
    """AdamW with a learning rate that falls to zero."""
    steps = options.epochs * -(-len(x) // 128)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4)


def fit_labels(model):
    """Train a model with labels, behind the views."""
    augmented = keras.Sequential([keras.Input((28, 28, 1)), views(), model])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    augmented.compile(optimizer(), loss, metrics=["accuracy"])
    augmented.fit(x, y, batch_size=128, epochs=options.epochs, verbose=2)


# ## Train the teacher and a student with labels
teacher, alone = cnn(32, "teacher"), cnn(8, "student")
fit_labels(teacher)
fit_labels(alone)

# ## Distil a student, without labels
student = cnn(8, "student")
distiller = Distiller(student=student, teacher=teacher, augment=views())
distiller.compile(
    optimizer(),
    FunctionMatching(temperature=2.0),
    metrics=["accuracy", TeacherAgreement()],
)
distiller.fit(
    x,
    batch_size=128,
    epochs=options.epochs,
    validation_data=(x_test, y_test),
    verbose=2,
)

# ## Compare and save
models = {"teacher": teacher, "labels": alone, "distilled": student}
print(compare(models, (x_test, y_test), litert=()))
student.save("mnist_student.keras")
