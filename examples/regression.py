"""Regression: a small network learns from the mean of five larger ones.

The diabetes data of scikit-learn: ten measurements of a patient, and the
progress of the disease a year later. `ValueMatching` compares values. A list of
teachers is averaged.

    python examples/regression.py

Takes half a minute on two CPU cores.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_diabetes

from keras_distill import Distiller
from keras_distill import ValueMatching
from keras_distill import compare

# ## Load and standardize the data
keras.utils.set_random_seed(0)
x, y = load_diabetes(return_X_y=True)
x = (x / x.std(axis=0)).astype("float32")
y = ((y - y.mean()) / y.std()).astype("float32")[:, None]
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:221], order[221:]


# ## Train five teachers, each on another sample of the patients
def mlp(units, l2=0.0):
    penalty = keras.regularizers.L2(l2)
    dense = {"activation": "relu", "kernel_regularizer": penalty}
    return keras.Sequential(
        [
            keras.Input((10,)),
            layers.Dense(units, **dense),
            layers.Dense(units, **dense),
            layers.Dense(1),
        ]
    )


teachers = []
for seed in range(5):
    sample = np.random.default_rng(seed).choice(train, len(train))
    teacher = mlp(64, l2=0.01)
    teacher.compile(keras.optimizers.Adam(3e-3), "mse")
    teacher.fit(x[sample], y[sample], epochs=30, verbose=0)
    teachers.append(teacher)

# ## Train a student with labels, and distil another without labels
alone, student = mlp(16), mlp(16)
student.set_weights(alone.get_weights())
alone.compile(keras.optimizers.Adam(3e-3), "mse")
alone.fit(x[train], y[train], epochs=100, verbose=0)

distiller = Distiller(student=student, teacher=teachers)
distiller.compile(keras.optimizers.Adam(3e-3), ValueMatching("mse"))
distiller.fit(x[train], epochs=100, verbose=0)

# ## Compare
inputs = keras.Input((10,))
outputs = layers.Average()([teacher(inputs) for teacher in teachers])
models = {
    "five teachers": keras.Model(inputs, outputs),
    "one teacher": teachers[0],
    "labels": alone,
    "distilled": student,
}
metrics = {"rmse": keras.metrics.RootMeanSquaredError()}
print(compare(models, (x[test], y[test]), litert=(), metrics=metrics))
student.save("student.keras")
