"""What the image experiments share: data, resumable training, results.

One call of an example trains one network. It keeps the network, its learning
curve and its state in `--workdir`, adds a row to `results.json` there and draws
all curves into `curves.png`. Called again after a kill it goes on where it was;
called again after the end it finds the network and trains nothing.
"""

import argparse
import pathlib
import sys
import time
import zipfile

import experiment_results as results
import keras
import numpy as np

from keras_distill import DIST
from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import RecordedTeacher
from keras_distill import Resume
from keras_distill import record_teacher
from keras_distill.compression import fold_batch_norm

LOSSES = ("alone", "classic_kd", "function_matching", "standardized", "dist")


def parser_of(text, epochs):
    """Return the arguments that all experiments take."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="folder with the data")
    add("--loss", choices=LOSSES, default="function_matching")
    add("--temperature", type=float, default=1.0)
    add("--alpha", type=float, default=0.9, help="of classic_kd")
    add(
        "--mix",
        type=float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="ALPHA",
        help="MixUp in the views, uniform unless another alpha is given",
    )
    add("--smallest-area", type=float, default=0.5, help="of a crop")
    add("--shift", type=float, default=0.0, help="of views, share of a side")
    add("--epochs", type=int, default=epochs)
    add("--teacher-epochs", type=int, default=epochs)
    add("--teacher-learning-rate", type=float, default=1e-3)
    add("--teacher-smallest-area", type=float, default=0.5)
    add("--teacher-batch-size", type=int, default=128)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=3e-3)
    add("--seed", type=int, default=0)
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs"))
    add("--smoke", action="store_true", help="a few batches, to see it run")
    add(
        "--validation",
        action="store_true",
        help="to choose settings: score images that are held out of the "
        "training images",
    )
    add(
        "--recorded-epochs",
        type=int,
        default=0,
        help="record the teacher for so many epochs, and replay them",
    )
    add(
        "--teacher-dtype",
        default="float32",
        help="the teacher's policy, for instance mixed_bfloat16",
    )
    parser.set_defaults(recording_seed=0)
    return parser


def parse(parser):
    options = parser.parse_args()
    if options.smoke:
        options.epochs = options.teacher_epochs = 1
    options.workdir.mkdir(parents=True, exist_ok=True)
    return options


def in_policy(dtype, make):
    """Return what a function builds, under a dtype policy."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy(policy)


def for_teacher(options):
    """Return the options with which the teacher learns from labels."""
    changes = {
        "loss": "alone",
        "seed": 0,
        "mix": 0.0,
        "shift": 0.0,
        "smallest_area": options.teacher_smallest_area,
        "epochs": options.teacher_epochs,
        "batch_size": options.teacher_batch_size,
        "learning_rate": options.teacher_learning_rate,
    }
    return argparse.Namespace(**{**vars(options), **changes})


def random_data(shape, scored_shape, classes):
    """Return noise in the form of data, to see that an example runs."""
    random = np.random.default_rng(0)
    return tuple(
        (
            random.integers(0, 256, (64, *shape), dtype="uint8"),
            random.integers(0, classes, 64, dtype="int32"),
        )
        for shape in (shape, scored_shape)
    )


def arrays_in(folder, file, names):
    """Return arrays of an `.npz` file, or exit and say what is wrong.

    Args:
        folder: where it should lie.
        file: its name.
        names: of the arrays, or a function from all names to those wanted.
    """
    path = folder / file
    expected = f"{file}"
    if not callable(names):
        expected += f", which holds the arrays {', '.join(names)}"
    if not path.is_file():
        sys.exit(
            f"There is no {path}. `--data` must name a folder with {expected}."
        )
    try:
        with path.open("rb") as file, np.load(file) as archive:
            if callable(names):
                names = names(archive.files)
            return [archive[name] for name in names]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        sys.exit(f"{path} is no {expected}: {error}")


def view_seed(options):
    """Return the seed of the views.

    One recording serves all students: their first weights tell the seeds apart.
    Where those are given, every seed requires its own `recording_seed`.
    """
    return options.recording_seed if options.recorded_epochs else options.seed


def shifts(options):
    """Return the layer that shifts images, if the options ask for one.

    A crop shows things larger than the test does; a shift does not.
    """
    if not options.shift:
        return []
    return [
        keras.layers.RandomTranslation(
            options.shift,
            options.shift,
            fill_mode="reflect",
            interpolation="nearest",  # Whole pixels: nothing is blurred.
        )
    ]


def split(data, options, held_out):
    """Return `((x, y), (x, y))`: images to train with, and images to score."""
    (x, y), test = data
    if options.smoke:
        return (x[:64], y[:64]), (test[0][:64], test[1][:64])
    if options.validation:
        return (x[:-held_out], y[:-held_out]), (x[-held_out:], y[-held_out:])
    return (x, y), test


def loss_of(options):
    """Return the loss that the options name."""
    if options.loss == "alone":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if options.loss == "classic_kd":
        return ClassicKD(options.alpha, options.temperature)
    if options.loss == "dist":
        return DIST(label_weight=0.0, temperature=options.temperature)
    return FunctionMatching(
        options.temperature,
        standardize_logits=options.loss == "standardized",
    )


def optimizer(options, samples):
    """AdamW that warms up for 5 % of the steps and falls to 0 as a cosine."""
    steps = -(-samples // options.batch_size) * options.epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps,
        warmup_target=options.learning_rate,
        warmup_steps=steps // 20 + 1,
    )
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4)


class Accuracy(keras.callbacks.Callback):
    """Scores the network alone: without views and without the teacher."""

    def __init__(self, network, x, y, every):
        super().__init__()
        self.network, self.x, self.y, self.every = network, x, y, every

    def on_epoch_end(self, epoch, logs):
        logs["val_accuracy"] = float("nan")
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.params["epochs"]:
            decided = results.decisions(self.network, self.x)
            logs["val_accuracy"] = float(np.mean(decided == self.y))


def fit(model, network, data, scored, name, options, callbacks=()):
    """Fit the model that trains a network, resumable.

    The network's learning curve is kept in a file.
    """
    steps = -(-len(data[0]) // options.batch_size)
    print(f"Training {name}: {options.epochs} epochs of {steps} steps.")
    model.fit(
        *data,
        batch_size=options.batch_size,
        epochs=options.epochs,
        callbacks=[
            *callbacks,
            Accuracy(network, *scored, every=max(1, options.epochs // 20)),
            keras.callbacks.CSVLogger(
                options.workdir / f"{name}.csv", append=True
            ),
            Resume(options.workdir / f"{name}-state"),
        ],
    )


class Augmented(keras.Model):
    """A network behind views, which bring every image to its input's size."""

    def __init__(self, views, network):
        super().__init__()
        self.views, self.network = views, network

    def call(self, x, training=None):
        # Views even where Keras only asks for shapes, as it does before `fit`.
        return self.network(self.views(x, training=True), training=training)


def train_alone(network, views, data, scored, name, options):
    """Train with labels; the network sees the views that all others see."""
    augmented = Augmented(views, network)
    augmented.build((None, *data[0].shape[1:]))
    augmented.compile(
        optimizer(options, len(data[0])),
        loss=loss_of(options),
        metrics=["accuracy"],
    )
    fit(augmented, network, data, scored, name, options)


def train_taught(
    network, teacher, views, data, scored, name, options, callbacks=()
):
    """Train with the teacher, live or from its recording."""
    teacher = fold_batch_norm(teacher)  # The same outputs in less time.
    if options.recorded_epochs:
        teacher = recorded(teacher, data[0], views, options)
    distiller = Distiller(student=network, teacher=teacher, augment=views)
    distiller.compile(optimizer(options, len(data[0])), loss=loss_of(options))
    fit(distiller, network, data, scored, name, options, callbacks)


def recorded(teacher, x, views, options):
    """Return the recording of a teacher, made now or found."""
    path = options.workdir / recording_of(teacher, options)
    record_teacher(
        teacher,
        x,
        path,
        augment=views,
        epochs=options.recorded_epochs,
        batch_size=options.batch_size,
    )
    return RecordedTeacher(path)


def recording_of(teacher, options):
    """Name a recording by what its views, outputs and batches depend on."""
    parts = ["recording", teacher.name, f"{options.smallest_area:g}"]
    parts += [f"batch-{options.batch_size}"]
    parts += [f"shift-{options.shift:g}"] if options.shift else []
    parts += mix_of(options)
    parts += ["held-out"] if options.validation else []
    parts += [f"seed-{options.recording_seed}"]
    return "-".join(parts)


def mix_of(options):
    """Return the part of a name that tells the MixUp, if there is any."""
    if not options.mix:
        return []
    return ["mixup" if options.mix == 1.0 else f"mixup-{options.mix:g}"]


def trained(name, make, train, options):
    """Return the network of this name, trained now or found.

    Args:
        name: of the files in the work folder.
        make: function that returns a new network.
        train: function that trains it.
        options: with `seed` and `workdir`.
    """
    path = options.workdir / f"{name}.keras"
    if path.exists():
        print(f"Found {path}.")
        return keras.models.load_model(path)
    keras.utils.set_random_seed(options.seed)
    network = make()
    start = time.time()
    train(network)
    print(f"{name}: {time.time() - start:.0f} s.")
    network.save(path)
    return network


def run(options, data, scored, views, student, teacher):
    """Return the student that the options ask for, trained and reported on.

    Args:
        options: parsed arguments.
        data: `(x, y)` to train with.
        scored: `(x, y)` to score.
        views: function that returns the augmentation.
        student: function that returns a new student.
        teacher: function that returns the trained teacher.
    """
    taught_by = teacher() if options.loss != "alone" else None
    name = name_of(options, taught_by)
    results.refuse_other_settings(name, options)

    def train(network):
        if taught_by is None:
            train_alone(network, views(), data, scored, name, options)
        else:
            train_taught(
                network, taught_by, views(), data, scored, name, options
            )

    network = trained(name, student, train, options)
    results.report(name, network, scored, options, taught_by)
    return network


def name_of(options, teacher):
    """Name a run by the student and what it was trained with."""
    parts = [options.student] if "student" in options else []
    parts += [options.loss]
    if teacher is not None:
        parts += [f"by-{teacher.name}", f"T{options.temperature:g}"]
    parts += mix_of(options)
    parts += [f"{options.epochs}-epochs", f"seed-{options.seed}"]
    return "_".join(parts)
