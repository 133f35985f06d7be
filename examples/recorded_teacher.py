"""Offline distillation: record a teacher once, then train two students.

The teacher's outputs for ten epochs of random views are written to disk. Each
student then trains for 40 epochs on these views, without running the teacher.

    python examples/recorded_teacher.py

Takes half a minute on two CPU cores.
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import compare
from keras_distill import record_teacher

# ## Load the digits, images of 8x8 pixels
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
x, x_test, y, y_test = x[:1297], x[1297:], y[:1297], y[1297:]


# ## Train the teacher
def cnn(width):
    conv = {"strides": 2, "padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, **conv),
            layers.Conv2D(2 * width, 3, **conv),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


teacher = cnn(64)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
teacher.compile(keras.optimizers.Adam(1e-3), loss)
teacher.fit(x, y, epochs=20, verbose=0)

# ## Record its outputs for ten epochs of views
augment = ConsistentAugment(
    [InceptionCrop(8, 8, area_range=(0.6, 1.0)), MixUp()]
)
recording = record_teacher(teacher, x, "recording", augment=augment, epochs=10)

# ## Train two students from the recording
# `fit()` gets the same images. The recording knows which crop and which
# mixture belongs to each of its rows.
students = {"width 4": cnn(4), "width 8": cnn(8)}
for student in students.values():
    distiller = Distiller(student=student, teacher=recording, augment=augment)
    distiller.compile(keras.optimizers.Adam(3e-3), FunctionMatching())
    distiller.fit(x, epochs=40, verbose=0)

# ## Compare and save
print(compare({"teacher": teacher, **students}, (x_test, y_test), litert=()))
student.save("student.keras")
