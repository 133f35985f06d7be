"""Every loss of the package on one task: digits, taught without labels.

The task of `digits.py`: 897 images whose labels are gone, and a teacher that
was trained with them. Every student has the same initial weights per seed, the
same crops, optimizer and number of steps; `DecoupledKD`, which needs to know a
target class, gets the class that the teacher decides for. One setting of each
loss, its temperature or the weight of a hint, is chosen on the 300 validation
images, and the 600 test images are scored once with it.

    python experiments/compare_losses.py \\
        --out experiments/results/losses.json

About fifteen minutes on two cores.
"""

import argparse
import pathlib

import digits
import experiment_results as results
import keras
import numpy as np
import results_schema

from keras_distill import DIST
from keras_distill import AttentionTransfer
from keras_distill import ClassicKD
from keras_distill import DecoupledKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import RelationalKD
from keras_distill import SimilarityPreserving

TEMPERATURES = (1.0, 2.0, 4.0)
WEIGHTS = (0.1, 1.0, 10.0)
EPOCHS, STEPS = 8, 5 * digits.STEPS_AT_ONCE


def falling(temperature):
    """From four times the temperature down to it, over the training."""
    return FunctionMatching(
        keras.optimizers.schedules.CosineDecay(
            4.0 * temperature, EPOCHS * STEPS, alpha=0.25
        )
    )


LOSSES = {
    "FunctionMatching": FunctionMatching,
    "FunctionMatching, standardised": lambda temperature: FunctionMatching(
        temperature, standardize_logits=True
    ),
    "ClassicKD": lambda temperature: ClassicKD(1.0, temperature),
    "ClassicKD, standardised": lambda temperature: ClassicKD(
        1.0, temperature, standardize_logits=True
    ),
    "DIST": lambda temperature: DIST(label_weight=0, temperature=temperature),
    "DecoupledKD": lambda temperature: DecoupledKD(
        label_weight=0, temperature=temperature
    ),
    "FunctionMatching, reverse": lambda temperature: FunctionMatching(
        temperature, divergence="reverse"
    ),
    "FunctionMatching, jensen_shannon": lambda temperature: FunctionMatching(
        temperature, divergence="jensen_shannon"
    ),
    "FunctionMatching, falling from 4 T": falling,
    "FunctionMatching + DIST": lambda temperature: (
        FunctionMatching(temperature)
        + DIST(label_weight=0, temperature=temperature)
    ),
}
# Beside `FunctionMatching()`; between the layers that are 4 pixels wide.
HINTS = {
    "AttentionTransfer": AttentionTransfer,
    "SimilarityPreserving": SimilarityPreserving,
    "RelationalKD": RelationalKD,
}


def taught(name, value, seed, teacher, images, options):
    """Return a student that learned from the teacher's outputs only."""
    keras.utils.set_random_seed(seed)
    student = digits.student_cnn()
    loss, hints = FunctionMatching(), []
    if name in HINTS:
        ends = teacher.layers[1].name, student.layers[0].name
        hints = [Hint(*ends, loss=HINTS[name](), weight=value)]
    else:
        loss = LOSSES[name](value)
    distiller = Distiller(
        student=student,
        teacher=teacher,
        augment=digits.views(seed),
        hints=hints,
    )
    distiller.compile(digits.optimizer(1e-2, options), loss=loss, **digits.FAST)
    decided = digits.decisions(teacher, images).astype("int32")
    digits.fit(distiller, options, images, decided)
    return student


def accuracy(student, x, y):
    return float(np.mean(digits.decisions(student, x) == y))


def chosen(name, teacher, data, options):
    """Choose the setting on the validation split; score the test split.

    Returns:
        `(settings, metrics)` of the best setting.
    """
    images = data["train"][0]
    best = None
    setting, values = "temperature", TEMPERATURES
    if name in HINTS:
        setting, values = "weight", WEIGHTS
    for value in values[: options.tried]:
        students = [
            taught(name, value, seed, teacher, images, options)
            for seed in range(options.seeds)
        ]
        validation = np.mean(
            [accuracy(student, *data["validation"]) for student in students]
        )
        print(f"{name:34} {setting}={value:g}: {validation:.2%}", flush=True)
        if best is None or validation > best[1]["validation_accuracy"]:
            metrics = {
                "validation_accuracy": float(validation),
                "test_accuracy": [accuracy(s, *data["test"]) for s in students],
            }
            best = {"loss": name, setting: value}, metrics
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="losses.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a short try")
    options = parser.parse_args()
    options.epochs, options.steps, options.tried = EPOCHS, STEPS, None
    if options.smoke:
        options.epochs, options.steps = 1, digits.STEPS_AT_ONCE
        options.seeds = options.tried = 1
    data = digits.load()
    teacher = digits.train_teacher(data, options)
    teacher_accuracy = accuracy(teacher, *data["test"])
    rows = []
    for name in (*LOSSES, *HINTS):
        settings, metrics = chosen(name, teacher, data, options)
        metrics["teacher_accuracy"] = teacher_accuracy
        rows.append(results.row_of(name, options, metrics, **settings))
        test = 100 * np.array(metrics["test_accuracy"])
        print(
            f"{settings}: {metrics['validation_accuracy']:.2%}, test "
            f"{test.mean():.2f} ± {digits.spread(test):.2f} %"
        )
    results_schema.write(rows, options.out)


if __name__ == "__main__":
    main()
