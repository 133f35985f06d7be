"""Compression: prune channels, distil, train for int8, export to LiteRT.

Half of the channels of a trained CNN are removed. The original network teaches
what is left, first in float32 and then with the rounding of int8. Needs
`pip install keras-distill[litert]`.

    python examples/prune_and_export.py

Takes half a minute on two CPU cores.
"""

import pathlib

import keras
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import compare
from keras_distill.compression import export_litert
from keras_distill.compression import prune_channels
from keras_distill.compression import quantize_aware

# ## Load the digits, images of 8x8 pixels
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
x, x_test, y, y_test = x[:1297], x[1297:], y[:1297], y[1297:]

# ## Train the network
network = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.Conv2D(32, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
network.compile(keras.optimizers.Adam(1e-3), loss)
network.fit(x, y, epochs=15, verbose=0)


# ## Remove half of the channels, and distil
def distil(student, learning_rate, epochs):
    augment = ConsistentAugment([InceptionCrop(8, 8, area_range=(0.6, 1.0))])
    distiller = Distiller(student=student, teacher=network, augment=augment)
    distiller.compile(keras.optimizers.Adam(learning_rate), FunctionMatching())
    distiller.fit(x, epochs=epochs, verbose=0)


pruned = prune_channels(network, 0.5)
before = keras.models.clone_model(pruned)
before.set_weights(pruned.get_weights())
distil(pruned, learning_rate=2e-3, epochs=20)

# ## Train with the rounding of int8, and export
int8 = quantize_aware(pruned)
distil(int8, learning_rate=2e-4, epochs=5)
export_litert(int8, "student.tflite", "int8")

# ## Compare
models = {"network": network, "pruned": before, "distilled": pruned}
print(compare(models, (x_test, y_test), litert=()))
accuracy = (int8.predict(x_test, verbose=0).argmax(-1) == y_test).mean()
size = pathlib.Path("student.tflite").stat().st_size
print(f"int8: accuracy {accuracy:.1%}, a file of {size:,} bytes")
