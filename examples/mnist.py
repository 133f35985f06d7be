"""MNIST: a CNN of 1.4 million parameters teaches one of 20 thousand.

Trains the teacher (convolutions 256 and 512 wide), the student (16 and 32)
alone with labels, and the same student with `ClassicKD` and `FunctionMatching`.
All of them see random crops, all get the same number of epochs, and nothing is
chosen by the test accuracy: each network is scored once, as it ends.

    python examples/mnist.py                        # downloads MNIST
    python examples/mnist.py --data FOLDER          # reads FOLDER/mnist.npz

A run that is stopped goes on where it was: networks and optimizers are kept in
`--workdir`. On processors with bfloat16 arithmetic, `--teacher-dtype
mixed_bfloat16` halves the time. The backend is Keras's: `KERAS_BACKEND=jax`.
"""

import argparse
import json
import pathlib
import sys
import time
import zipfile

import keras
import numpy as np
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import TeacherAgreement

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load(folder):
    """Return MNIST as `(x_train, y_train, x_test, y_test)`, x in [0, 1]."""
    if folder is None:
        print("Loading MNIST with keras.datasets.mnist (11 MB, once).")
        (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        arrays = (x, y, x_test, y_test)
    else:
        path = pathlib.Path(folder) / "mnist.npz"
        if not path.is_file():
            sys.exit(
                f"There is no {path}. `--data` must name a folder with "
                f"mnist.npz, which holds the arrays {', '.join(ARRAYS)}."
            )
        try:
            with np.load(path) as archive:
                arrays = [archive[name] for name in ARRAYS]
        except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
            sys.exit(
                f"{path} is no MNIST archive with the arrays "
                f"{', '.join(ARRAYS)}: {error}"
            )
    x_train, y_train, x_test, y_test = arrays
    if x_train.shape[1:] != (28, 28) or len(x_train) != len(y_train):
        sys.exit(f"Expected images of 28x28. Received: {x_train.shape}")
    return (
        x_train[..., None].astype("float32") / 255,
        y_train.astype("int32"),
        x_test[..., None].astype("float32") / 255,
        y_test.astype("int32"),
    )


def cnn(widths, name, dtype="float32"):
    """Two convolutions of stride 2 and a dense layer that returns logits."""
    first, second = widths
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(first, 3, strides=2, padding="same", dtype=dtype),
            layers.LeakyReLU(0.2, dtype=dtype),
            layers.MaxPooling2D(2, strides=1, padding="same", dtype=dtype),
            layers.Conv2D(second, 3, strides=2, padding="same", dtype=dtype),
            layers.LeakyReLU(0.2, dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(10, dtype="float32"),
        ],
        name=name,
    )


def views(mix, seed):
    """Random crops of 60 to 100 % of the area, and MixUp if asked for."""
    crop = InceptionCrop(
        28, 28, area_range=(0.6, 1.0), aspect_ratio_range=(0.8, 1.25)
    )
    return ConsistentAugment([crop, MixUp()] if mix else [crop], seed=seed)


def optimizer(peak, steps):
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.0, warmup_target=peak, warmup_steps=steps // 20 + 1
    )
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4)


def label_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(model, options, data, name):
    """Fit a compiled model, resumable, and return its seconds."""
    x_train, y_train, x_test, y_test = data
    start = time.time()
    model.fit(
        x_train,
        y_train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=(x_test, y_test),
        callbacks=[
            keras.callbacks.BackupAndRestore(options.workdir / f"{name}-state"),
            keras.callbacks.CSVLogger(
                options.workdir / f"{name}.csv", append=True
            ),
        ],
        verbose=options.verbose,
    )
    return time.time() - start


def trained(name, make, compile_and_fit, options):
    """Return `(model, seconds)`, from the work folder if it is there."""
    path = options.workdir / f"{name}.keras"
    record = options.workdir / f"{name}.json"
    if path.exists() and record.exists():
        print(f"Found {path}.")
        return keras.models.load_model(path), json.loads(record.read_text())
    print(f"Training {name}.")
    keras.utils.set_random_seed(options.seed)
    model = make()
    seconds = compile_and_fit(model)
    model.save(path)
    record.write_text(json.dumps(seconds))
    return model, seconds


def run(options):
    """Train all four networks and return their results as rows."""
    data = load(options.data)
    if options.smoke:
        data = tuple(array[:256] for array in data)
    x_test, y_test = data[2:]
    steps = -(-len(data[0]) // options.batch_size) * options.epochs

    def alone(model, peak):
        augmented = keras.Sequential(
            [keras.Input((28, 28, 1)), views(False, options.seed), model]
        )
        augmented.compile(
            optimizer(peak, steps), label_loss(), metrics=["accuracy"]
        )
        return train(augmented, options, data, model.name)

    def taught(model, loss, mix):
        distiller = Distiller(
            student=model, teacher=teacher, augment=views(mix, options.seed)
        )
        distiller.compile(
            optimizer(3e-3, steps),
            loss=loss,
            metrics=["accuracy", TeacherAgreement()],
        )
        return train(distiller, options, data, model.name)

    teacher, seconds = trained(
        "teacher",
        lambda: cnn((256, 512), "teacher", options.teacher_dtype),
        lambda model: alone(model, 1e-3),
        options,
    )
    answers = teacher.predict(x_test, verbose=0)
    rows = [row("teacher", teacher, answers, answers, y_test, seconds)]
    students = {
        "student_alone": lambda model: alone(model, 3e-3),
        "student_classic_kd": lambda model: taught(
            model, ClassicKD(alpha=0.9, temperature=4.0), mix=False
        ),
        "student_function_matching": lambda model: taught(
            model, FunctionMatching(temperature=2.0), mix=True
        ),
    }
    for name, fit in students.items():
        student, seconds = trained(
            name, lambda name=name: cnn((16, 32), name), fit, options
        )
        predictions = student.predict(x_test, verbose=0)
        rows.append(row(name, student, predictions, answers, y_test, seconds))
    return rows


def row(name, model, predictions, teacher_predictions, labels, seconds):
    decided = predictions.argmax(-1)
    agreement = np.mean(decided == teacher_predictions.argmax(-1))
    return {
        "name": name,
        "parameters": model.count_params(),
        "test_accuracy": float(np.mean(decided == labels)),
        "teacher_agreement": float(agreement),
        "training_seconds": round(seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder with mnist.npz")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-dtype", default="float32")
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/mnist")
    parser.add_argument("--verbose", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few batches")
    options = parser.parse_args()
    if options.smoke:
        options.epochs = 1
    options.workdir.mkdir(parents=True, exist_ok=True)

    rows = run(options)
    results = {
        "command": "python " + " ".join(sys.argv),
        "backend": keras.backend.backend(),
        "epochs": options.epochs,
        "seed": options.seed,
        "rows": rows,
    }
    path = options.workdir / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"\n{'network':28}{'parameters':>12}{'accuracy':>10}{'agreement':>11}"
    )
    for line in rows:
        print(
            f"{line['name']:28}{line['parameters']:>12,}"
            f"{line['test_accuracy']:>10.2%}{line['teacher_agreement']:>11.2%}"
        )
    print(f"Wrote {path} and the networks beside it.")


if __name__ == "__main__":
    main()
