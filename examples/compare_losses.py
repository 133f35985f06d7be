"""Every loss of the package on one task: digits, taught without labels.

The task of `digits.py`: 897 images whose labels are gone, and a teacher that
was trained with them. Every student has the same initial weights per seed, the
same crops, optimizer and number of steps; `DecoupledKD`, which needs to know a
target class, gets the class that the teacher decides for. The temperature of
each loss is chosen on the 300 validation images, and the 600 test images are
scored once with it.

    python examples/compare_losses.py --out examples/results/losses.json

About six minutes on two cores.
"""

import argparse
import json
import pathlib
import types

import digits
import keras
import numpy as np

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import DecoupledKD
from keras_distill import Distiller
from keras_distill import FunctionMatching

TEMPERATURES = (1.0, 2.0, 4.0)
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
}


def taught(loss, seed, teacher, images, options):
    """Return a student that learned from the teacher's answers alone."""
    keras.utils.set_random_seed(seed)
    student = digits.student_cnn()
    distiller = Distiller(
        student=student, teacher=teacher, augment=digits.views(seed)
    )
    distiller.compile(digits.optimizer(1e-2, options), loss=loss, **digits.FAST)
    decided = digits.decisions(teacher, images).astype("int32")
    digits.fit(distiller, options, images, decided)
    return student


def accuracy(student, x, y):
    return float(np.mean(digits.decisions(student, x) == y))


def row_of(name, teacher, data, options):
    """Choose the temperature on the validation split; score the test split."""
    images = data["train"][0]
    best = {"validation": -1.0}
    for temperature in TEMPERATURES:
        students = [
            taught(LOSSES[name](temperature), seed, teacher, images, options)
            for seed in range(options.seeds)
        ]
        validation = np.mean(
            [accuracy(student, *data["validation"]) for student in students]
        )
        print(f"{name:32} T={temperature:g}: {validation:.2%}", flush=True)
        if validation > best["validation"]:
            best = {
                "loss": name,
                "temperature": temperature,
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
        epochs=1 if given.smoke else 8,
        steps=(1 if given.smoke else 5) * digits.STEPS_AT_ONCE,
        seeds=1 if given.smoke else given.seeds,
    )
    data = digits.load()
    teacher = digits.train_teacher(data, options)
    rows = [row_of(name, teacher, data, options) for name in LOSSES]
    result = {
        "command": "python examples/compare_losses.py",
        "backend": keras.backend.backend(),
        "teacher": accuracy(teacher, *data["test"]),
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1))
    for row in rows:
        test = 100 * np.array(row["test"])
        print(
            f"| `{row['loss']}` | {row['temperature']:g} | {test.mean():.2f} ± "
            f"{digits.spread(test):.2f} % |"
        )


if __name__ == "__main__":
    main()
