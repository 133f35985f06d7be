"""Rows of `results.json`, and the learning curves beside them."""

import csv
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys

import keras
import numpy as np
from matplotlib.figure import Figure


def decisions(model, x):
    return model.predict(x, batch_size=500, verbose=0).argmax(-1)


def accuracy(model, scored):
    x, y = scored
    return float(np.mean(decisions(model, x) == y))


def report(name, network, scored, options, teacher=None):
    """Score a network, add its row to `results.json` and draw the curves.

    Args:
        name: of the row.
        network: the trained network.
        scored: `(x, y)`, images that it has not seen.
        options: what it was trained with.
        teacher: what agreement is measured with.
    """
    x, y = scored
    decided = decisions(network, x)
    row = {
        "name": name,
        "command": command(),
        "commit": commit(),
        "hardware": hardware(),
        "student": network.name,
        "loss": options.loss,
        "mix": options.mix,
        "epochs": options.epochs,
        "seed": options.seed,
        "scored_on": "validation" if options.validation else "test",
        "parameters": network.count_params(),
        "accuracy": float(np.mean(decided == y)),
    }
    if teacher is not None:
        answers = decisions(teacher, x)
        row["teacher"] = teacher.name
        row["temperature"] = options.temperature
        row["teacher_parameters"] = teacher.count_params()
        row["teacher_accuracy"] = float(np.mean(answers == y))
        row["agreement"] = float(np.mean(decided == answers))
    add(row, options.workdir)
    plot(rows_in(options.workdir), options.workdir)
    print(f"{name}: {row['accuracy']:.2%} of the {row['scored_on']} images.")


def add(row, workdir):
    """Write a row into `results.json`, in place of one of the same name."""
    rows = [x for x in rows_in(workdir) if x["name"] != row["name"]]
    path = workdir / "results.json"
    path.write_text(json.dumps([*rows, row], indent=1) + "\n")


def rows_in(workdir):
    path = workdir / "results.json"
    return json.loads(path.read_text()) if path.exists() else []


def refuse_other_settings(name, options):
    """Exit if the network of this name was trained by another command."""
    for row in rows_in(options.workdir):
        if row["name"] == name and row["command"] != command():
            sys.exit(
                f"{options.workdir / name}.keras was trained by\n"
                f"  {row['command']}\nReceived:\n  {command()}\n"
                "Choose another `--workdir`, or delete it."
            )


def command():
    """Return what was trained: the command line without this machine's folders.

    `--report` only shows what a network trained without it became.
    """
    words = [word for word in sys.argv if word != "--report"]
    for flag, public in (("--data", "FOLDER"), ("--workdir", "RUNS")):
        if flag in words:
            words[words.index(flag) + 1] = public
    return " ".join(
        ["python", f"examples/{pathlib.Path(words[0]).name}", *words[1:]]
    )


def commit():
    """Return the commit that ran, with a + where files were changed."""
    folder = pathlib.Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            check=True,
            cwd=folder,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"


def hardware():
    """Return what the numbers were made on."""
    backend = keras.backend.backend()
    version = importlib.metadata.version(backend)
    return f"{os.cpu_count()} cores, {platform.machine()}, {backend} {version}"


def plot(rows, workdir):
    """Draw the learning curve of every row."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        curve = curve_of(workdir / f"{row['name']}.csv")
        if curve:
            epochs, values = zip(*curve)
            label = f"{row['name']}, {row['accuracy']:.1%}"
            axes.plot(epochs, 100 * np.array(values), ".-", label=label)
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"{rows[-1]['scored_on']} accuracy in %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(workdir / "curves.png", dpi=150)


def curve_of(path):
    """Return `(epoch, accuracy)` of the epochs that were scored."""
    if not path.exists():
        return []
    with path.open() as file:
        lines = [
            (int(line["epoch"]) + 1, float(line["val_accuracy"]))
            for line in csv.DictReader(file)
        ]
    return [line for line in lines if not np.isnan(line[1])]
