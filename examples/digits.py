"""Digits: the whole of distillation in about a minute on a laptop.

The setting is the one in which a teacher matters most: many images, few labels.
On scikit-learn's 1,797 images of 8x8 digits, a teacher of 80 thousand
parameters is trained once, on 1,000 labelled images. For a student of 666
parameters only 100 of these labels are there. Over several seeds it is trained

- alone, with the 100 labelled images;
- with `ClassicKD`, on the same 100 images, their labels and the teacher;
- with `FunctionMatching`, on all 1,000 images, without a label.

For each seed all three start from the same weights and get the same optimizer,
the same number of steps and the same random crops. Settings were chosen on the
validation split (`--validation`); the table shows the test split. (With all
1,000 labels the student alone does as well as a taught one here: it is too
small for the teacher to add anything.)

    python examples/digits.py
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop

BATCH = 50
NUM_LABELS = 100
STUDENT_FILE = "demo_student.keras"
METHODS = ("alone", "ClassicKD", "FunctionMatching")


def load():
    """Return `{split: (images, labels)}` with images in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1)
    y = y[order].astype("int32")
    return {
        "train": (x[:1000], y[:1000]),
        "validation": (x[1000:1300], y[1000:1300]),
        "test": (x[1300:], y[1300:]),
    }


def cnn(widths, name):
    """Two convolutions and a dense layer that returns logits."""
    first, second = widths
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(first, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(second, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name=name,
    )


def views(seed):
    crop = InceptionCrop(
        8, 8, area_range=(0.6, 1.0), aspect_ratio_range=(0.8, 1.25)
    )
    return ConsistentAugment([crop], seed=seed)


def fit(model, loss, data, epochs, verbose=0):
    """Compile and train a model with the settings that all of them share."""
    x, y = data
    steps = epochs * -(-len(x) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=0.01, warmup_steps=steps // 10 + 1
    )
    # PyTorch runs one step at a time.
    at_once = 1 if keras.backend.backend() == "torch" else 20
    model.compile(
        keras.optimizers.Adam(schedule), loss, steps_per_execution=at_once
    )
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=verbose)


def fit_with_labels(model, seed, data, epochs, verbose=0):
    augmented = keras.Sequential(
        [keras.Input((8, 8, 1)), views(seed), model], name=f"{model.name}_fit"
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit(augmented, loss, data, epochs, verbose)


def train_student(method, teacher, seed, data, epochs):
    """Return a small student, trained by one of the methods."""
    keras.utils.set_random_seed(seed)
    student = cnn((4, 8), "student")
    # Repeated, so that few images make as many steps as all of them.
    repeats = len(data[0]) // NUM_LABELS
    labelled = tuple(np.concatenate([a[:NUM_LABELS]] * repeats) for a in data)
    if method == "alone":
        fit_with_labels(student, seed, labelled, epochs)
        return student
    distiller = Distiller(student=student, teacher=teacher, augment=views(seed))
    if method == "ClassicKD":
        fit(distiller, ClassicKD(alpha=0.9, temperature=4.0), labelled, epochs)
    else:
        images = (data[0], None)
        fit(distiller, FunctionMatching(temperature=2.0), images, epochs)
    return student


def score(model, data, teacher_classes):
    """Return `(accuracy, agreement with the teacher)`."""
    x, y = data
    classes = model.predict(x, batch_size=len(x), verbose=0).argmax(-1)
    return np.mean(classes == y), np.mean(classes == teacher_classes)


def run(seeds, epochs, split):
    """Train everything; return the models and their scores by name."""
    data = load()
    print(f"Training the teacher for {epochs} epochs.")
    keras.utils.set_random_seed(0)
    teacher = cnn((64, 128), "teacher")
    fit_with_labels(teacher, 0, data["train"], epochs, verbose=1)
    x, _ = data[split]
    classes = teacher.predict(x, batch_size=len(x), verbose=0).argmax(-1)
    scores = {"teacher": [score(teacher, data[split], classes)]}
    models = {"teacher": teacher}
    print(f"Training {len(METHODS) * seeds} students for {epochs} epochs each.")
    progress = keras.utils.Progbar(len(METHODS) * seeds, unit_name="student")
    for seed in range(1, seeds + 1):
        for method in METHODS:
            models[method] = train_student(
                method, teacher, seed, data["train"], epochs
            )
            result = score(models[method], data[split], classes)
            scores.setdefault(method, []).append(result)
            progress.add(1)
    return models, scores


def print_table(models, scores, folder):
    print(f"\n{NUM_LABELS} labels for the student; mean +- standard deviation")
    head = f"{'network':20}{'accuracy':>18}{'agreement':>12}"
    print(f"{head}{'parameters':>12}{'bytes':>10}")
    for name, results in scores.items():
        accuracies, agreements = 100 * np.array(results).T
        spread = f" +- {accuracies.std():.2f} %" if len(results) > 1 else " %"
        path = folder / (
            "demo_teacher.keras" if name == "teacher" else STUDENT_FILE
        )
        models[name].save(path)
        print(
            f"{name:20}{f'{accuracies.mean():.2f}{spread}':>18}"
            f"{agreements.mean():>10.2f} %{models[name].count_params():>12,}"
            f"{path.stat().st_size:>10,}"
        )


def plot(scores, path):
    """Draw each seed's accuracy, and the teacher's as a dashed line."""
    means = {name: 100 * np.mean(scores[name], axis=0)[0] for name in scores}
    best = max(METHODS, key=means.get)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(means["teacher"], color="0.3", linestyle="--")
    axes.annotate(
        f"teacher {means['teacher']:.1f} %",
        (-0.48, means["teacher"]),
        color="0.3",
        va="bottom",
    )
    colours = ("#D55E00", "#0072B2", "#009E73")  # safe for colour-blind eyes
    for place, (method, colour) in enumerate(zip(METHODS, colours)):
        accuracies = 100 * np.array(scores[method])[:, 0]
        spread = np.linspace(-0.12, 0.12, len(accuracies))
        axes.plot(place + spread, accuracies, "o", color=colour, alpha=0.6)
        axes.hlines(means[method], place - 0.25, place + 0.25, color=colour)
        axes.annotate(
            f"{means[method]:.1f} %",
            (place + 0.28, means[method]),
            color=colour,
            va="center",
        )
    ticks = [
        f"alone\n{NUM_LABELS} labels",
        f"ClassicKD\n{NUM_LABELS} labels",
        "FunctionMatching\nno labels",
    ]
    axes.set_xticks(range(len(METHODS)), ticks)
    axes.set_xlim(-0.5, len(METHODS) - 0.35)
    axes.set_ylabel("test accuracy (%)")
    gain = means[best] - means["alone"]
    axes.set_title(
        f"With {NUM_LABELS} labels the student is best "
        + (f"with {best}: {gain:+.1f} points" if gain else "alone")
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=pathlib.Path, default=".")
    parser.add_argument("--validation", action="store_true", help="to tune")
    parser.add_argument("--smoke", action="store_true", help="one seed, short")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.epochs = 1, 1
    start = time.time()
    split = "validation" if options.validation else "test"
    models, scores = run(options.seeds, options.epochs, split)
    print_table(models, scores, options.out)
    plot(scores, options.out / "demo.png")
    seconds = time.time() - start
    print(f"Wrote demo.png and {STUDENT_FILE} in {seconds:.0f} seconds.")


if __name__ == "__main__":
    main()
