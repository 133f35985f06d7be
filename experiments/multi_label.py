"""Several labels per image: which digits are on a canvas, with a teacher.

A canvas shows none to three digits, each in another corner. Its labels are
ten sigmoids: any number of them may be 1, so the loss is `BinaryKD` and not one
for a softmax. The setting is the one in which a teacher matters: many images,
few labels.

- The teacher, a CNN of 94 thousand parameters, was trained on 12,000 labelled
  canvases.
- The student, a CNN of 24 thousand, is trained when 1,000 of the labels are
  still at hand. Alone it can use these canvases and no others.
- `BinaryKD` uses all 12,000, without a label.
- For comparison, the student alone with all labels: the limit of the method
  here.

Per seed, all students have the same initial weights, optimizer and number of
steps. A canvas counts as right if all ten labels are. The canvases of the test
show other digits, those of MNIST's test images.

    python experiments/multi_label.py --data FOLDER    # reads FOLDER/mnist.npz

About ten minutes on one core. Without `--data`, the 8x8 digits of scikit-learn
are drawn. The backend is Keras's: `KERAS_BACKEND=jax`.
"""

import argparse
import pathlib

import experiment
import experiment_results as results
import keras
import numpy as np
import results_schema
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import BinaryKD
from keras_distill import Distiller

CANVASES, LABELLED, TESTED = 12_000, 1_000, 4_000
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load(folder):
    """Return digits to draw in training and in the test, `(x, y)` each."""
    if folder is None:
        x, y = load_digits(return_X_y=True)
        x = (x / 16).reshape(-1, 8, 8)
        return (x[:1200], y[:1200]), (x[1200:], y[1200:])
    x, y, x_test, y_test = experiment.arrays_in(folder, "mnist.npz", ARRAYS)
    return (halved(x), y), (halved(x_test), y_test)


def halved(images):
    """Return images of 28x28 bytes as 14x14 floats."""
    return images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255


def draw(digits, count, seed):
    """Return canvases and their labels, `(count, 10)`."""
    x, y = digits
    generator = np.random.default_rng(seed)
    size = x.shape[1]
    corner = size + 3
    images = np.zeros((count, 2 * corner, 2 * corner, 1), "float32")
    labels = np.zeros((count, 10), "float32")
    for image, label in zip(images, labels):
        for place in generator.permutation(4)[: generator.integers(4)]:
            digit = generator.integers(len(x))
            shift = generator.integers(0, 4, 2)
            top, left = corner * np.array(divmod(place, 2)) + shift
            image[top : top + size, left : left + size, 0] = x[digit]
            label[y[digit]] = 1
    return images, labels


def cnn(width, shape):
    def convolution(filters):
        return layers.Conv2D(filters, 3, padding="same", activation="relu")

    return keras.Sequential(
        [
            keras.Input(shape),
            convolution(width),
            layers.MaxPooling2D(),
            convolution(2 * width),
            layers.MaxPooling2D(),
            convolution(4 * width),
            layers.GlobalMaxPooling2D(),
            layers.Dense(10),
        ]
    )


def fit(model, loss, data, steps):
    """Fit for a number of steps of 50 canvases, however few there are."""
    epochs = max(50 * steps // len(data[0]), 1)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(*data, batch_size=50, epochs=epochs, verbose=0)


def exact(model, images, labels):
    """Return the share of canvases of which all labels are right."""
    logits = model.predict(images, batch_size=500, verbose=0)
    return float(np.mean(np.all((logits > 0) == (labels > 0), axis=-1)))


def run(data, options):
    digits, test_digits = load(data)
    images, labels = draw(digits, options.canvases, seed=0)
    test = draw(test_digits, TESTED, seed=1)
    few = images[:LABELLED], labels[:LABELLED]
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    keras.utils.set_random_seed(0)
    teacher = cnn(32, images.shape[1:])
    fit(teacher, cross_entropy, (images, labels), options.steps)
    rows = {"teacher": [exact(teacher, *test)]}
    methods = {
        "alone, 1,000 labels": (cross_entropy, few),
        "BinaryKD, no labels": (BinaryKD(alpha=1.0), (images,)),
        "alone, all labels": (cross_entropy, (images, labels)),
    }
    for seed in range(options.seeds):
        for name, (loss, shown) in methods.items():
            keras.utils.set_random_seed(seed)
            student = model = cnn(16, images.shape[1:])
            if isinstance(loss, BinaryKD):
                model = Distiller(student=student, teacher=teacher)
            fit(model, loss, shown, options.steps)
            rows.setdefault(name, []).append(exact(student, *test))
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, help="folder of mnist.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--smoke", action="store_true", help="one epoch of few canvases"
    )
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON")
    options = parser.parse_args()
    options.canvases, options.steps = CANVASES, 2400
    if options.smoke:
        options.seeds, options.canvases, options.steps = 1, 100, 2
    rows = run(options.data, options)
    for name, shares in rows.items():
        print(f"{name:22} {np.mean(shares):.1%} ± {np.std(shares):.1%}")
    if options.out:
        results_schema.write(
            [
                results.row_of(
                    name, options, {"exact_matches": shares}, model=name
                )
                for name, shares in rows.items()
            ],
            options.out,
        )


if __name__ == "__main__":
    main()
