"""Feature distillation: match intermediate layers as well as outputs.

Two students learn from the same teacher and without labels: one matches the
teacher's outputs, the other also the features of a convolution, with a `Hint`.
The student's layer has fewer channels, so a linear projector is trained with
it. The projector is not part of the student.

    python examples/hints.py

Takes half a minute on two CPU cores.
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import InceptionCrop
from keras_distill import compare

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
            layers.Conv2D(width, 3, name="block_1", **conv),
            layers.Conv2D(2 * width, 3, name="block_2", **conv),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


teacher = cnn(64)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
teacher.compile(keras.optimizers.Adam(1e-3), loss)
teacher.fit(x, y, epochs=20, verbose=0)


# ## Distil with and without a hint, from the same initial weights
def distil(hints):
    keras.utils.set_random_seed(1)
    student = cnn(4)
    distiller = Distiller(
        student=student,
        teacher=teacher,
        augment=ConsistentAugment(
            [InceptionCrop(8, 8, area_range=(0.6, 1.0))], seed=1
        ),
        hints=hints,
    )
    distiller.compile(keras.optimizers.Adam(3e-3), FunctionMatching())
    distiller.fit(x, batch_size=64, epochs=30, verbose=0)
    return student


outputs_only = distil(hints=[])
student = distil(hints=[Hint("block_2", "block_2", weight=1.0)])

# ## Compare
models = {"teacher": teacher, "outputs": outputs_only, "hint": student}
print(compare(models, (x_test, y_test), litert=()))
student.save("student.keras")
