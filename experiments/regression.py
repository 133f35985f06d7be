"""Regression: a small network learns from the mean of eight larger ones.

The diabetes data of scikit-learn, nothing to download: 442 patients, ten
measurements, and the progress of the disease a year later. There are few and
noisy labels, and a network of 465 parameters overfits to them.

- The teacher is the mean of eight networks, each trained on another bootstrap
  sample of the training half. A `Distiller` takes them as a list, and
  `ValueMatching` averages their outputs.
- The student alone has the labels, without and with the L2 penalty that the
  teachers have.
- `ValueMatching` has no labels: it uses the teachers' outputs for the same
  patients.
- For comparison, a ridge regression. On data this small it is the best of all:
  the experiment shows what a teacher adds to a network.

Each seed splits the patients again. Per seed, all students have the same
initial weights, optimizer and number of steps. Settings were fixed beforehand,
and the test half is scored once. Errors are in units of the standard deviation
of the target, so 1 is the error of the mean.

    python experiments/regression.py \\
        --out experiments/results/regression.json

About four minutes on one core. The backend is Keras's: `KERAS_BACKEND=jax`.
"""

import argparse
import pathlib

import experiment_results as results
import keras
import numpy as np
import results_schema
from keras import layers
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV

from keras_distill import Distiller
from keras_distill import ValueMatching

L2 = 0.01


def load():
    """Return the measurements and the target, both standardised."""
    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(axis=0), (y - y.mean()) / y.std()
    return x.astype("float32"), y.astype("float32")


def mlp(units, l2=0.0):
    def dense():
        return layers.Dense(
            units,
            activation="relu",
            kernel_regularizer=keras.regularizers.L2(l2) if l2 else None,
        )

    return keras.Sequential(
        [keras.Input((10,)), dense(), dense(), layers.Dense(1)]
    )


def fit(model, loss, x, y, epochs):
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def train_teachers(x, y, generator, options):
    teachers = []
    for _ in range(options.teachers):
        rows = generator.choice(len(x), len(x))
        teachers.append(
            fit(mlp(64, L2), "mse", x[rows], y[rows], options.teacher_epochs)
        )
    return teachers


def train_students(x, y, teachers, options):
    """Return `{name: student}`, all of them from the same initial weights."""
    students = {
        "alone": mlp(16),
        "alone, L2": mlp(16, L2),
        "ValueMatching, no labels": mlp(16),
    }
    weights = mlp(16).get_weights()
    for name, student in students.items():
        student.set_weights(weights)
        model, loss = student, "mse"
        if "ValueMatching" in name:
            model = Distiller(student=student, teacher=teachers)
            loss = ValueMatching("mse")
        fit(model, loss, x, y, options.epochs)
    return students


def error(predictions, y):
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.mean((np.ravel(predictions) - y) ** 2)))


def run_seed(seed, x, y, options):
    """Return `{name: error on the test half}`."""
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    train, test = np.split(generator.permutation(len(x)), 2)
    teachers = train_teachers(x[train], y[train], generator, options)
    outputs = [t.predict(x[test], verbose=0) for t in teachers]
    ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(x[train], y[train])
    errors = {
        "teacher": error(np.mean(outputs, axis=0), y[test]),
        "one of the teachers": error(outputs[0], y[test]),
        "ridge regression": error(ridge.predict(x[test]), y[test]),
    }
    students = train_students(x[train], y[train], teachers, options)
    for name, student in students.items():
        errors[name] = error(student.predict(x[test], verbose=0), y[test])
    return errors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one epoch")
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON")
    options = parser.parse_args()
    options.teachers, options.teacher_epochs, options.epochs = 8, 30, 100
    if options.smoke:
        options.seeds, options.teachers = 1, 2
        options.teacher_epochs, options.epochs = 1, 1
    x, y = load()
    seeds = [run_seed(seed, x, y, options) for seed in range(options.seeds)]
    rows = []
    for name in seeds[0]:
        errors = [errors[name] for errors in seeds]
        print(f"{name:26} {np.mean(errors):.3f} ± {np.std(errors):.3f}")
        metrics = {"root_mean_squared_error": errors}
        rows.append(results.row_of(name, options, metrics, model=name))
    if options.out:
        results_schema.write(rows, options.out)


if __name__ == "__main__":
    main()
