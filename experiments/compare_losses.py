"""Every loss of the package on one task: digits, taught without labels.

The task of `digits.py`: 897 images whose labels are gone, and a teacher that
was trained with them. Every student has the same initial weights per seed, the
same crops, optimizer and number of steps; `DecoupledKD`, which needs to know a
target class, gets the class that the teacher decides for. One setting of each
loss, its temperature or the weight of a hint, is chosen on the 300 validation
images, and the 600 test images are scored once with it.

    python examples/compare_losses.py --out examples/results/losses.json

About fifteen minutes on two cores.
"""

import argparse
import json
import pathlib
import types

import digits
import keras
import numpy as np

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
    """Return a student that learned from the teacher's answers alone."""
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


def row_of(name, teacher, data, options):
    """Choose the setting on the validation split; score the test split."""
    images = data["train"][0]
    best = {"validation": -1.0}
    setting, values = "temperature", TEMPERATURES
    if name in HINTS:
        setting, values = "weight", WEIGHTS
    for value in values[: options.settings]:
        students = [
            taught(name, value, seed, teacher, images, options)
            for seed in range(options.seeds)
        ]
        validation = np.mean(
            [accuracy(student, *data["validation"]) for student in students]
        )
        print(f"{name:34} {setting}={value:g}: {validation:.2%}", flush=True)
        if validation > best["validation"]:
            best = {
                "loss": name,
                setting: value,
                "validation": float(validation),
                "test": [accuracy(s, *data["test"]) for s in students],
            }
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="losses.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a short try")
    given = parser.parse_args()
    options = types.SimpleNamespace(
        epochs=1 if given.smoke else EPOCHS,
        steps=digits.STEPS_AT_ONCE if given.smoke else STEPS,
        seeds=1 if given.smoke else given.seeds,
        settings=1 if given.smoke else None,
    )
    data = digits.load()
    teacher = digits.train_teacher(data, options)
    names = [*LOSSES, *HINTS]
    rows = [row_of(name, teacher, data, options) for name in names]
    result = {
        "command": "python examples/compare_losses.py",
        "backend": keras.backend.backend(),
        "teacher": accuracy(teacher, *data["test"]),
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1))
    for row in rows:
        test = 100 * np.array(row["test"])
        setting = "weight" if "weight" in row else "temperature"
        print(
            f"| {row['loss']} | {setting} {row[setting]:g} | "
            f"{row['validation']:.2%} | {test.mean():.2f} ± "
            f"{digits.spread(test):.2f} % |"
        )


if __name__ == "__main__":
    main()
