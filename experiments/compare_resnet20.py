"""What a ResNet-20 wins by zeros, and what by channels removed for good.

    python experiments/compare_resnet20.py --data FOLDER

Both students start as the pretrained network, which is their teacher: one has
90 % of its weights set to zero while it learns, the other half of its channels
removed before. Training is short; the costs are the same after a long one.
Reads cifar10.npz and cifar10_resnet20_state.npz in FOLDER, and writes the table
and the plot.
"""

import argparse
import pathlib

import cifar10
import keras
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import compare
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import prune_channels


def taught(student, teacher, x, options, callbacks=()):
    """Train a student, at a rate that falls to zero."""
    steps = options.epochs * -(-len(x) // options.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    distiller = Distiller(
        student=student,
        teacher=teacher,
        augment=ConsistentAugment([layers.RandomFlip("horizontal")], seed=0),
    )
    distiller.compile(keras.optimizers.Adam(rate), loss=FunctionMatching())
    distiller.fit(
        x,
        batch_size=options.batch_size,
        epochs=options.epochs,
        callbacks=callbacks,
        verbose=2,
    )
    return student


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="folder with the data")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=64)
    add("--out", type=pathlib.Path, default=pathlib.Path("."))
    add("--smoke", action="store_true", help="a few images, to see it run")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    (x, _), (x_test, y_test) = cifar10.load(options)
    litert = ("float32", "float16", "int8")
    if options.smoke:
        x, x_test, y_test, litert = x[:128], x_test[:64], y_test[:64], ()
        teacher = cifar10.resnet(8, "resnet8")
    else:
        teacher = cifar10.pretrained(20, options.data)

    steps = options.epochs * -(-len(x) // options.batch_size)
    pruning = MagnitudePruning(
        0.9, end_step=2 * steps // 3, frequency=10, scope="lamp"
    )
    zeros = keras.models.clone_model(teacher)
    zeros.set_weights(teacher.get_weights())
    half = prune_channels(teacher, 0.5)
    models = {
        "dense": teacher,
        "90 % zeros": taught(zeros, teacher, x, options, [pruning]),
        "half the channels": taught(half, teacher, x, options),
    }
    report = compare(
        models, (x_test, y_test), litert, representative_data=x[:512]
    )
    print(report)
    (options.out / "comparison.md").write_text(f"{report.to_markdown()}\n")
    report.plot(options.out / "comparison.png")


if __name__ == "__main__":
    main()
