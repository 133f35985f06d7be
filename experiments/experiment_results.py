"""Rows of `results.json`, and the learning curves beside them."""

import csv
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

import keras
import numpy as np
import results_schema
from matplotlib.figure import Figure

from keras_distill import compare
from keras_distill.compression.litert._interpreter import interpreter
from keras_distill.compression.litert._interpreter import quantized

# What a command shows in place of this machine's folders.
PUBLIC = {"--data": "FOLDER", "--workdir": "RUNS"}


def decisions(model, x):
    return model.predict(x, batch_size=500, verbose=0).argmax(-1)


def accuracy(model, scored):
    x, y = scored
    return float(np.mean(decisions(model, x) == y))


def accuracy_of_file(path, scored):
    """Return the accuracy of a LiteRT file with one input and one output.

    Others' files may have no signature, and an input in int8.
    """
    runner = interpreter(path.read_bytes())
    runner.allocate_tensors()
    (takes,) = runner.get_input_details()
    (returns,) = runner.get_output_details()
    right = 0
    for image, label in zip(*scored):
        values = quantized(image[None].astype("float32"), takes)
        runner.set_tensor(takes["index"], values)
        runner.invoke()
        right += runner.get_tensor(returns["index"]).argmax() == label
    return float(right / len(scored[1]))


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
    names = {"network": network.name}
    metrics = {
        "parameters": network.count_params(),
        "accuracy": float(np.mean(decided == y)),
    }
    if teacher is not None:
        outputs = decisions(teacher, x)
        names["taught_by"] = teacher.name
        metrics["teacher_parameters"] = teacher.count_params()
        metrics["teacher_accuracy"] = float(np.mean(outputs == y))
        metrics["agreement"] = float(np.mean(decided == outputs))
    rows = add(row_of(name, options, metrics, **names), options.workdir)
    plot(rows, options.workdir)
    print(
        f"{name}: {metrics['accuracy']:.2%} of the "
        f"{split_of(options.validation)} images."
    )


def litert_files(networks, test):
    """Return `{name: figures of its LiteRT files}`."""
    comparison = compare(networks, test, litert=("float32", "dynamic_int8"))
    return {
        name: {
            key: figure
            for key, figure in figures.items()
            if key.startswith("litert_")
        }
        for name, figures in comparison.to_dict().items()
    }


def row_of(name, options, metrics, **settings):
    """Return a row of this run, on this machine."""
    return results_schema.new_row(
        name, options, metrics, command(), commit(), hardware(), **settings
    )


def split_of(validation):
    return "validation" if validation else "test"


def add(row, workdir):
    """Write a row into `results.json`, in place of one of the same name.

    Returns:
        All rows.
    """
    path = workdir / "results.json"
    rows = [x for x in results_schema.read(path) if x["name"] != row["name"]]
    rows.append(row)
    results_schema.write(rows, path)
    return rows


def refuse_other_settings(name, options):
    """Exit if the network of this name was trained with other settings."""
    settings = results_schema.settings_of(options)
    for row in results_schema.read(options.workdir / "results.json"):
        recorded = {key: row["settings"].get(key) for key in settings}
        if row["name"] == name and recorded != settings:
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
    for flag, public in PUBLIC.items():
        if flag in words:
            words[words.index(flag) + 1] = public
    return " ".join(
        ["python", f"experiments/{pathlib.Path(words[0]).name}", *words[1:]]
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
            label = f"{row['name']}, {row['metrics']['accuracy']:.1%}"
            axes.plot(epochs, 100 * np.array(values), ".-", label=label)
    validation = rows[-1]["settings"]["validation"]
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"{split_of(validation)} accuracy in %")
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
