"""Multi-label classification: which digits are on a canvas?

A canvas shows one to three digits. Its labels are ten sigmoids, so the loss is
`BinaryKD`. The teacher learns from 4,000 labelled canvases. The student has
all canvases but only 400 of the labels.

    python examples/multi_label.py

Takes half a minute on two CPU cores.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import BinaryKD
from keras_distill import Distiller
from keras_distill import compare

# ## Draw canvases of digits from scikit-learn
keras.utils.set_random_seed(0)
digits, kinds = load_digits(return_X_y=True)
digits = (digits / 16).astype("float32").reshape(-1, 8, 8)


def canvases(count, first, last, seed):
    """Draw digits `first` to `last` of the data set, one in each corner."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, 16, 16, 1), "float32")
    labels = np.zeros((count, 10), "float32")
    for image, label in zip(images, labels):
        corners = [(0, 0), (0, 8), (8, 0), (8, 8)]
        generator.shuffle(corners)
        for top, left in corners[: generator.integers(1, 4)]:
            chosen = generator.integers(first, last)
            image[top : top + 8, left : left + 8, 0] = digits[chosen]
            label[kinds[chosen]] = 1
    return images, labels


x, y = canvases(4000, 0, 1297, seed=0)
x_test, y_test = canvases(1000, 1297, 1797, seed=1)


# ## Train the teacher, and a student with 400 labels
def cnn(width):
    conv = {"padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(width, 3, **conv),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, **conv),
            layers.Conv2D(2 * width, 3, **conv),
            layers.GlobalMaxPooling2D(),
            layers.Dense(10),
        ]
    )


teacher, alone, student = cnn(24), cnn(8), cnn(8)
for model, labelled, epochs in ((teacher, 4000, 15), (alone, 400, 100)):
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(x[:labelled], y[:labelled], epochs=epochs, verbose=0)

# ## Distil the other student from all canvases, without labels
distiller = Distiller(student=student, teacher=teacher)
distiller.compile(keras.optimizers.Adam(2e-3), BinaryKD(alpha=1.0))
distiller.fit(x, batch_size=64, epochs=30, verbose=2)

# ## Compare: the share of labels that are right
models = {"teacher": teacher, "400 labels": alone, "distilled": student}
metrics = {"label accuracy": keras.metrics.BinaryAccuracy(threshold=0.0)}
print(compare(models, (x_test, y_test), litert=(), metrics=metrics))
student.save("student.keras")
