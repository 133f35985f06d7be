"""Digits: a small network learns from a teacher when labels are few.

The 8x8 digits of scikit-learn, nothing to download. The split is fixed: 897
images to train, 300 to choose settings, 600 to test. A teacher helps where
there are many images and few labels:

- The teacher, a CNN of 85 thousand parameters, is trained with all 897 labels.
- The student, a CNN of 2 thousand, has only 100 of the labels. Alone it can use
  these 100 images and no others.
- `ClassicKD` and `FunctionMatching` use all 897 images without labels: the
  targets are the teacher's predictions.
- For comparison, the student alone with all 897 labels. It shows the limit of
  the method: if every image has its label, this teacher adds nothing.

At the end, `shrink` makes the teacher itself fit a microcontroller with 20 kB
for the network: without labels, in int8, with the RAM that it takes there.

Per seed, all students have the same architecture, initial weights, optimizer,
number of steps and random crops; `FunctionMatching` also mixes the images, as
its recipe says. All settings were chosen on the 300 images, and the test images
are scored once, at the end. The spread is the standard deviation over the
seeds; teacher and split are the same for all of them.

    python experiments/digits.py

Less than two minutes on two cores. The backend is Keras's: `KERAS_BACKEND=jax`.
"""

import argparse
import pathlib
import tempfile
import time

import keras
import numpy as np
from keras import layers
from keras import ops
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import TeacherAgreement
from keras_distill import compare
from keras_distill import shrink

LABELLED = 100
BATCH_SIZE = 64
STEPS_AT_ONCE = 15
MAX_BYTES = 20_000

# So small a step costs less than the Python around it, and on TensorFlow less
# than XLA takes to compile it. PyTorch knows neither of the two.
FAST = {
    "tensorflow": {"steps_per_execution": STEPS_AT_ONCE, "jit_compile": False},
    "jax": {"steps_per_execution": STEPS_AT_ONCE},
}.get(keras.backend.backend(), {})

ALONE = f"alone, {LABELLED} labels"
CLASSIC_KD = "ClassicKD, no labels"
FUNCTION_MATCHING = "FunctionMatching, no labels"
ALL_LABELS = "alone, all labels"
# Colours of Okabe and Ito, told apart by colour-blind readers too.
COLOURS = {
    ALONE: "#D55E00",
    CLASSIC_KD: "#0072B2",
    FUNCTION_MATCHING: "#009E73",
    ALL_LABELS: "#7F7F7F",
}


def load():
    """Return `{"train", "validation", "test", "labelled"}: (x, y)`."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    rest, test = split(x, y.astype("int32"), 600)
    train, validation = split(*rest, 300)
    _, labelled = split(*train, LABELLED)
    return {
        "train": train,
        "validation": validation,
        "test": test,
        "labelled": labelled,
    }


def split(x, y, count):
    """Take `count` images out, equally many of every digit."""
    x, x_taken, y, y_taken = train_test_split(
        x, y, test_size=count, stratify=y, random_state=0
    )
    return (x, y), (x_taken, y_taken)


def teacher_cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, 2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ],
        name="teacher",
    )


def student_cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, 2, padding="same", activation="relu"),
            layers.Conv2D(16, 3, 2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name="student",
    )


def views(seed, mix=False):
    """Random crops of 60 to 100 % of the area, and MixUp if asked for."""
    crop = InceptionCrop(
        8, 8, area_range=(0.6, 1.0), aspect_ratio_range=(0.8, 1.25)
    )
    return ConsistentAugment([crop, MixUp()] if mix else [crop], seed=seed)


def optimizer(peak, options):
    steps = options.epochs * options.steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=peak, warmup_steps=steps // 20 + 1
    )
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4)


def fit(model, options, *data, **arguments):
    """Fit for the same number of steps, however few images there are."""
    shown = options.steps * BATCH_SIZE
    data = [np.resize(array, (shown, *array.shape[1:])) for array in data]
    arguments = {"verbose": 0, **arguments}
    model.fit(*data, batch_size=BATCH_SIZE, epochs=options.epochs, **arguments)


def train_alone(model, data, peak, seed, options, **arguments):
    """Train with labels; the model sees the crops that all others see."""
    augmented = keras.Sequential([keras.Input((8, 8, 1)), views(seed), model])
    augmented.compile(
        optimizer(peak, options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **FAST,
    )
    fit(augmented, options, *data, **arguments)


def distil(student, teacher, images, loss, mix, seed, options):
    """Train with the teacher: there are no labels among the arguments."""
    distiller = Distiller(
        student=student, teacher=teacher, augment=views(seed, mix)
    )
    distiller.compile(
        optimizer(1e-2, options),
        loss=loss,
        metrics=[TeacherAgreement()],
        **FAST,
    )
    fit(distiller, options, images)


def train_student(method, seed, teacher, data, options):
    keras.utils.set_random_seed(seed)  # The same initial weights per seed.
    student = student_cnn()
    images = data["train"][0]
    if method == ALONE:
        train_alone(student, data["labelled"], 1e-2, seed, options)
    elif method == CLASSIC_KD:
        loss = ClassicKD(alpha=1.0, temperature=4.0)
        distil(student, teacher, images, loss, False, seed, options)
    elif method == FUNCTION_MATCHING:
        loss = FunctionMatching()
        distil(student, teacher, images, loss, True, seed, options)
    else:
        train_alone(student, data["train"], 1e-2, seed, options)
    return student


def train_teacher(data, options):
    keras.utils.set_random_seed(0)
    teacher = teacher_cnn()
    train_alone(
        teacher,
        data["train"],
        3e-3,
        0,
        options,
        validation_data=data["validation"],
        verbose=1,
    )
    return teacher


def decisions(model, images):
    return ops.convert_to_numpy(model(images, training=False)).argmax(-1)


def run(data, options):
    """Train everything; return the rows, the teacher and the first students."""
    x_test, y_test = data["test"]
    print(f"Training the teacher on {len(data['train'][0])} labelled images.")
    teacher = train_teacher(data, options)
    outputs = decisions(teacher, x_test)
    rows, students = {"teacher": new_row(teacher)}, {}
    add(rows["teacher"], outputs, outputs, y_test)

    for seed in range(options.seeds):
        print(f"\nSeed {seed + 1} of {options.seeds}: four times one student.")
        for method in COLOURS:
            print(f"  {method:30}", end="", flush=True)
            start = time.time()
            student = train_student(method, seed, teacher, data, options)
            if seed == 0:
                rows[method] = new_row(student)
                students[method] = student
            add(rows[method], decisions(student, x_test), outputs, y_test)
            accuracy = rows[method]["accuracy"][-1]
            seconds = time.time() - start
            print(f"{accuracy:7.1%} of the test images, {seconds:4.1f} s")
    return rows, teacher, students


def new_row(model):
    return {
        "parameters": model.count_params(),
        "bytes": bytes_on_disk(model),
        "accuracy": [],
        "agreement": [],
    }


def bytes_on_disk(model):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return path.stat().st_size


def add(row, predicted, outputs, labels):
    row["accuracy"].append(float(np.mean(predicted == labels)))
    row["agreement"].append(float(np.mean(predicted == outputs)))


def spread(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def print_table(rows):
    print(
        f"\n{'':28}{'test':>12}{'':13}{'saved file':>12}{'agreement':>15}\n"
        f"{'network':28}{'accuracy':>12}{'parameters':>13}{'in bytes':>12}"
        f"{'with teacher':>15}"
    )
    for name, row in rows.items():
        accuracy = f"{np.mean(row['accuracy']):.1%}"
        if len(row["accuracy"]) > 1:
            accuracy += f" ± {100 * spread(row['accuracy']):.1f}"
        print(
            f"{name:28}{accuracy:>12}{row['parameters']:>13,}"
            f"{row['bytes']:>12,}{np.mean(row['agreement']):>15.1%}"
        )


def finding(rows):
    """Say what the numbers say, in points of test accuracy."""
    alone = 100 * np.mean(rows[ALONE]["accuracy"])
    gains = [
        100 * np.mean(rows[method]["accuracy"]) - alone
        for method in (CLASSIC_KD, FUNCTION_MATCHING)
    ]
    low, high = min(gains), max(gains)
    noise = 100 * max(
        spread(rows[method]["accuracy"])
        for method in (ALONE, CLASSIC_KD, FUNCTION_MATCHING)
    )
    if low <= noise:
        return (
            f"The teacher's help, {low:+.1f} to {high:+.1f} points,\n"
            f"is not clear of the spread of {noise:.1f} points"
        )
    return (
        f"Taught without labels, the student gains {low:.1f} to {high:.1f} "
        f"points\nover learning alone from {LABELLED} labels"
    )


def print_finding(rows, count):
    """Print the finding, and what every network was allowed to see."""
    all_labels = np.mean(rows[ALL_LABELS]["accuracy"])
    print(
        f"\n{finding(rows)}.\n\n"
        f"The teacher was trained on {count} labels. For the student "
        f"{LABELLED} of them are left.\n"
        "Alone, it learns from these. Distilled, it learns from all "
        f"{count} images and the\nteacher's outputs, and sees no label. "
        f"Had it all {count} labels, it would reach\n{all_labels:.1%} alone, "
        "and would hardly need a teacher."
    )


def shrink_for_a_microcontroller(teacher, data, options):
    """Write the teacher as an int8 file of at most 20 kB, and compare it."""
    print(f"\nShrinking the teacher to {MAX_BYTES:,} bytes in int8.")
    with tempfile.TemporaryDirectory() as directory:
        result = shrink(
            teacher,
            data["train"][0],
            validation=data["validation"],
            directory=directory,
            epochs=options.shrink_epochs,
            max_bytes=MAX_BYTES,
            augment=views(0, mix=True),
            learning_rate=3e-3,
            batch_size=BATCH_SIZE,
            verbose=0,
        )
        result.export(options.out / "demo_student.tflite")
    report = compare(
        {"teacher": teacher, f"{result.name}, in 20 kB": result.model},
        data["test"],
        litert="int8",
        representative_data=data["train"][0],
    )
    print(f"\n{report}")


def plot(rows, path):
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for place, (method, colour) in enumerate(COLOURS.items()):
        values = 100 * np.array(rows[method]["accuracy"])
        offsets = np.linspace(-0.16, 0.16, len(values) + 2)[1:-1]
        axes.plot(
            place + offsets, values, "o", color=colour, markersize=8, alpha=0.75
        )
        mean = values.mean()
        axes.hlines(mean, place - 0.25, place + 0.25, color=colour, lw=3)
        axes.text(place + 0.29, mean, f"{mean:.1f}", va="center", color=colour)
    teacher = 100 * rows["teacher"]["accuracy"][0]
    axes.axhline(
        teacher, ls="--", color="black", label=f"teacher, {teacher:.1f}"
    )
    axes.set_xticks(
        range(len(COLOURS)),
        [method.replace(", ", "\n") for method in COLOURS],
    )
    axes.set_xlim(-0.5, len(COLOURS) - 0.3)
    axes.set_ylabel("test accuracy in %")
    axes.set_title(finding(rows), loc="left", fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.supxlabel(
        "A point is a student of one seed, a bar the mean over the seeds.",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=".")
    parser.add_argument("--smoke", action="store_true", help="a few batches")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1. Received: {options.seeds}")
    options.epochs, options.steps = 8, 5 * STEPS_AT_ONCE
    options.shrink_epochs = 20
    if options.smoke:
        options.seeds, options.epochs, options.steps = 1, 1, STEPS_AT_ONCE
        options.shrink_epochs = 1
    options.out.mkdir(parents=True, exist_ok=True)

    data = load()
    rows, teacher, students = run(data, options)
    print_table(rows)
    print(
        f"Means over {options.seeds} seeds, ± their standard deviation, on "
        f"{len(data['test'][0])} test images."
    )
    print_finding(rows, len(data["train"][0]))
    student = options.out / "demo_student.keras"
    # On the validation images, ClassicKD did better than FunctionMatching.
    students[CLASSIC_KD].save(student)
    plot(rows, options.out / "demo.png")
    shrink_for_a_microcontroller(teacher, data, options)
    print(
        f"\nWrote {options.out / 'demo.png'},\n"
        f"{student}: the ClassicKD student of the first seed,\n"
        "a plain Keras model that loads without keras_distill,\n"
        f"and {options.out / 'demo_student.tflite'}: the teacher in 20 kB."
    )


if __name__ == "__main__":
    main()
