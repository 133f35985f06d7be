"""Deep Compression with a teacher: LeNets on MNIST, a hundred times smaller.

    python experiments/deep_compression.py --network lenet_300_100
    python experiments/deep_compression.py --network lenet_5 --data FOLDER
    python experiments/deep_compression.py --narrow 0.6 --sparsity 0.92

Trains a dense network, then prunes it, lets its weights share few values and
packs it into one file. In both stages the dense network teaches. `--narrow`
removes a share of the channels before: positions of weights take most of a
packed file, and fewer bits in a denser kernel. Writes a row for every stage to
`results.json` in `--workdir`, and the packed file. Called again it goes on with
the stage that was not finished.

Source: Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149, whose files
are 40 times smaller at an error of 1.58 %, and 39 times at 0.74 %.
"""

import argparse
import functools
import pathlib
import zlib

import experiment
import experiment_results as results
import keras
import mnist
import numpy as np
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing
from keras_distill.compression import pack
from keras_distill.compression import prune_channels
from keras_distill.compression import unpack

BATCH_SIZE = 128


def lenet_300_100():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(300, activation="relu"),
            layers.Dense(100, activation="relu"),
            layers.Dense(10),
        ]
    )


def lenet_5():
    """The LeNet-5 of Caffe, which is the one that papers compress."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(20, 5),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


NETWORKS = {"lenet_300_100": lenet_300_100, "lenet_5": lenet_5}


def views(options, shift, turn):
    """Return random shifts and turns, as shares of the image and of 360°.

    Around the digit as it is: crops would show it larger than the test does.
    """
    return ConsistentAugment(
        [
            layers.RandomTranslation(shift, shift, fill_mode="constant"),
            layers.RandomRotation(turn, fill_mode="constant"),
        ],
        seed=options.seed,
    )


def optimizer(learning_rate, steps):
    """AdamW whose learning rate falls to 0 as a cosine.

    Adam makes large weights of pixels that are seldom lit. The decay takes
    them back, so that a small weight is one that does little.
    """
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    return keras.optimizers.AdamW(schedule, weight_decay=0.1)


def learn(network, dense, data, options):
    """Train with labels; there is no dense network yet."""
    augmented = experiment.Augmented(views(options, 0.06, 0.03), network)
    augmented.build((None, *data[0].shape[1:]))
    epochs = options.epochs
    augmented.compile(
        optimizer(2e-3, epochs * steps_of(data)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    augmented.fit(*data, batch_size=BATCH_SIZE, epochs=epochs, verbose=2)


def teach(student, teacher, data, options, epochs, learning_rate, callback):
    """Train the student with a callback that holds its weights.

    It has few of them, and sees views nearer to the images.
    """
    distiller = Distiller(
        student=student, teacher=teacher, augment=views(options, 0.04, 0.015)
    )
    distiller.compile(
        optimizer(learning_rate, epochs * steps_of(data)),
        loss=ClassicKD(options.alpha, options.temperature),
    )
    distiller.fit(
        *data,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        callbacks=[callback],
        verbose=2,
    )


def prune(network, dense, data, options):
    epochs = options.epochs
    steps = epochs * steps_of(data)
    pruning = MagnitudePruning(
        options.sparsity,
        end_step=int(0.6 * steps),
        frequency=100,
        scope="lamp",
    )
    teach(network, dense, data, options, epochs, 2e-3, pruning)


def share(network, dense, data, options):
    sharing = WeightSharing(
        {"kernel": options.num_clusters, "bias": 2 * options.num_clusters}
    )
    # What is left to train are a few values, and the clusters stay.
    epochs = options.epochs // 10 or 1
    teach(network, dense, data, options, epochs, 1e-3, sharing)
    # Codebooks whose values half precision holds take half the room.
    network.set_weights([w.astype("float16") for w in network.get_weights()])


def steps_of(data):
    return -(-len(data[0]) // BATCH_SIZE)


def zlib_bytes(network):
    """Return how small zlib makes the weights as they are: the baseline."""
    weights = b"".join(w.tobytes() for w in network.get_weights())
    return len(zlib.compress(weights, 9))


def first(stages_before, options):
    """Return the network that a stage begins with."""
    if not stages_before:
        return NETWORKS[options.network]()
    if len(stages_before) == 1 and options.narrow:
        return prune_channels(stages_before[0], options.narrow)
    copy = keras.models.clone_model(stages_before[-1])
    copy.set_weights(stages_before[-1].get_weights())
    return copy


def report(name, stage, network, dense, scored, options):
    """Add a row to `results.json`: error, zeros, and bytes of the real file."""
    path = options.workdir / f"{name}.packed"
    pack(network, path)
    weights = np.concatenate([w.ravel() for w in network.get_weights()])
    metrics = {
        "error": 1 - results.accuracy(unpack(path), scored),
        "zeros": float(np.mean(weights == 0)),
        "float32_bytes": 4 * dense.count_params(),
        "zlib_bytes": zlib_bytes(network),
        "bytes": path.stat().st_size,
    }
    row = results.row_of(name, options, metrics, stage=stage)
    results.add(row, options.workdir)
    times, zlib_times = (
        metrics["float32_bytes"] / metrics[key]
        for key in ("bytes", "zlib_bytes")
    )
    print(
        f"{name}: error {metrics['error']:.2%}, {metrics['zeros']:.2%} zeros, "
        f"{metrics['bytes']:,} bytes, {times:.1f} times smaller "
        f"(zlib: {zlib_times:.1f} times)"
    )


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="folder with mnist.npz")
    add("--network", choices=NETWORKS, default="lenet_300_100")
    add("--narrow", type=float, default=0.0, help="ratio of channels removed")
    add("--sparsity", type=float, default=0.97, help="of the kernels left")
    add("--num-clusters", type=int, default=6)
    add("--alpha", type=float, default=0.5)
    add("--temperature", type=float, default=1.5)
    add("--epochs", type=int, default=60, help="of a stage; a tenth to share")
    add("--seed", type=int, default=0)
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs"))
    add("--validation", action="store_true", help="score held-out images")
    add("--smoke", action="store_true", help="a few batches, to see it run")
    options = parser.parse_args()
    if options.smoke:
        options.epochs = 2
    options.workdir.mkdir(parents=True, exist_ok=True)
    return options


def stages(options):
    """Return each stage: a name that tells its settings, and what trains it."""
    network = options.network
    taught = f"{options.sparsity:g}_a{options.alpha:g}_T{options.temperature:g}"
    taught += f"_narrow-{options.narrow:g}" if options.narrow else ""
    end = f"{options.epochs}-epochs_seed-{options.seed}"
    end += "_held-out" * options.validation + "_smoke" * options.smoke
    return {
        "dense": (f"{network}_dense_{end}", learn),
        "pruned": (f"{network}_pruned_{taught}_{end}", prune),
        "shared": (
            f"{network}_shared_{options.num_clusters}_{taught}_{end}",
            share,
        ),
    }


def main():
    options = parse()
    data, scored = experiment.split(mnist.load(options), options, 5000)
    networks = []
    for stage, (name, train) in stages(options).items():
        dense = networks[0] if networks else None
        network = experiment.trained(
            name,
            functools.partial(first, networks, options),
            functools.partial(train, dense=dense, data=data, options=options),
            options,
        )
        networks.append(network)
        report(name, stage, network, networks[0], scored, options)


if __name__ == "__main__":
    main()
