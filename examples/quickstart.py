"""Quickstart: distil a digit classifier into a much smaller network.

The teacher learns from 1,297 labelled images. For the student, only 100 of the
labels are left. It is trained with these 100 labels, and then distilled: it
learns from the teacher's predictions on all images, without labels.

    python examples/quickstart.py

Takes half a minute on two CPU cores.
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import compare

# ## Load the digits, images of 8x8 pixels
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
x, x_test, y, y_test = x[:1297], x[1297:], y[:1297], y[1297:]


# ## Train the teacher, and a student with 100 labels
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


teacher, alone, student = cnn(64), cnn(8), cnn(8)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
teacher.compile(keras.optimizers.Adam(1e-3), loss)
teacher.fit(x, y, epochs=20, verbose=0)
alone.compile(keras.optimizers.Adam(3e-3), loss)
alone.fit(x[:100], y[:100], epochs=200, verbose=0)

# ## Distil the other student: both models see the same random crops
augment = ConsistentAugment([InceptionCrop(8, 8, area_range=(0.6, 1.0))])
distiller = Distiller(student=student, teacher=teacher, augment=augment)
distiller.compile(keras.optimizers.Adam(3e-3), FunctionMatching(temperature=2))
distiller.fit(x, epochs=40, validation_data=(x_test, y_test), verbose=2)

# ## Compare and save
models = {"teacher": teacher, "100 labels": alone, "distilled": student}
print(compare(models, (x_test, y_test), litert=()))
student.save("student.keras")  # a plain Keras model
