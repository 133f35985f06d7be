"""Draws the figures of the docs: `python docs/figures/make_figures.py`."""

import json
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill.losses._divergence import log_soften

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parent.parent / "experiments" / "results"
TEACHER, STUDENT = "#0072B2", "#D55E00"


def network(width):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(width, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def trained_teacher(images, labels):
    keras.utils.set_random_seed(3)
    teacher = network(32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(0.003), loss)
    teacher.fit(images, labels, epochs=6, verbose=0)
    return teacher


def softened(logits, temperature=1.0):
    return np.exp(np.array(log_soften(logits, temperature)))[0]


def bars(axes, probabilities, colour, title):
    axes.bar(range(10), probabilities, color=colour)
    axes.set_xticks(range(10))
    axes.set_ylim(0, 1)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def pipeline(teacher, image):
    augment = ConsistentAugment([InceptionCrop(8, 8, (0.5, 0.6))], seed=5)
    view = np.array(augment(image, training=True))
    figure, axes = plt.subplot_mosaic(
        [["image", "view", "teacher"], ["image", "view", "student"]],
        figsize=(9, 3.6),
        layout="constrained",
        width_ratios=[1, 1, 1.6],
    )
    for name, picture in (("image", image), ("view", view)):
        axes[name].imshow(picture[0, :, :, 0], cmap="gray_r")
        axes[name].set_xticks([])
        axes[name].set_yticks([])
    axes["image"].set_title("an image", fontsize=11)
    axes["view"].set_title("one view, for both models", fontsize=11)
    keras.utils.set_random_seed(1)
    bars(
        axes["teacher"],
        softened(teacher(view)),
        TEACHER,
        "the teacher's probabilities",
    )
    student = softened(network(4)(view))
    bars(
        axes["student"],
        student,
        STUDENT,
        "the student's probabilities, before training",
    )
    figure.savefig(HERE / "pipeline.png", dpi=110)


def temperature(teacher, image):
    figure, axes = plt.subplots(
        1, 4, figsize=(9, 2.6), layout="constrained", sharey=True
    )
    for axis, value in zip(axes, (1, 2, 4, 10)):
        bars(axis, softened(teacher(image), value), TEACHER, f"T = {value}")
    axes[0].set_ylabel("probability")
    figure.suptitle("A high temperature shows the order of the other classes")
    figure.savefig(HERE / "temperature.png", dpi=110)


def consistency():
    """Draws what `experiments/consistency.py` measured."""
    rows = json.loads((RESULTS / "consistency.json").read_text())
    curves = {row["settings"]["views"]: row["metrics"] for row in rows}
    panels = {
        "train_divergence": "divergence on training views",
        "test_divergence": "divergence on test images",
        "test_accuracy": "accuracy on test images",
    }
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    for axis, (key, title) in zip(axes, panels.items()):
        for setting, values in curves.items():
            epochs = range(1, len(values[key]) + 1)
            axis.plot(epochs, values[key], label=setting)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(HERE / "consistency.png", dpi=110)


def patience():
    """Draws accuracy against epochs, for `experiments/cifar10.py`'s CNNs."""
    rows = json.loads((RESULTS / "cifar10.json").read_text())
    runs = [{**row["settings"], **row["metrics"]} for row in rows]
    taught = [run for run in runs if run.get("taught_by") == "teacher"]
    alone = [run for run in runs if run["loss"] == "alone"]
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for group, colour, label in (
        (taught, STUDENT, "student, function matching"),
        (alone, "#777777", "student, labels"),
    ):
        epochs = sorted({run["epochs"] for run in group})
        scores = [
            [100 * run["accuracy"] for run in group if run["epochs"] == count]
            for count in epochs
        ]
        means = [np.mean(accuracies) for accuracies in scores]
        axis.semilogx(epochs, means, "o-", color=colour, label=label)
        for count, accuracies in zip(epochs, scores):
            axis.plot([count] * len(accuracies), accuracies, "_", color=colour)
    axis.axhline(
        100 * taught[0]["teacher_accuracy"],
        color=TEACHER,
        linestyle="--",
        label="teacher",
    )
    axis.set_xticks(epochs, epochs)
    axis.minorticks_off()
    axis.set_xlabel("epochs")
    axis.set_ylabel("test accuracy in %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(HERE / "patience.png", dpi=110)


def main():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    teacher = trained_teacher(x[:1300], y[:1300])
    pipeline(teacher, x[1307:1308])
    temperature(teacher, x[1307:1308])
    consistency()
    patience()


if __name__ == "__main__":
    main()
