"""Which channels go first: scopes and scores, before any training.

    python experiments/prune_importance.py --data FOLDER

A ResNet-56 that was trained on CIFAR-10 loses channels until it has the given
share of its MACs. The statistics of its normalizations are estimated again, and
nothing is trained. The pruned networks are scored on images that are held out
of the training images, because these figures choose a default. FOLDER holds
cifar10.npz and cifar10_resnet56_state.npz. The scores of `taylor_scores` come
from 1,280 training images with their labels.
"""

import argparse
import pathlib

import cifar10
import experiment_results as results
import keras
import prune_resnet
import results_schema

from keras_distill import compare
from keras_distill.compression import prune_channels
from keras_distill.compression import taylor_scores

SHARES = (0.8, 0.65, 0.5)
LABELLED = 1280


def importances(whole, x, y):
    """Return `{name: the argument of prune_channels}`."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scores = taylor_scores(whole, x, y, loss=loss, batch_size=128)
    return {"l1": "l1", "batch_norm": "batch_norm", "taylor": scores}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, help="folder of the data")
    parser.add_argument("--out", type=pathlib.Path, default="importance.json")
    parser.add_argument("--smoke", action="store_true", help="a short try")
    options = parser.parse_args()
    (x, y), _ = cifar10.load(options)
    held_out = x[-cifar10.HELD_OUT :], y[-cifar10.HELD_OUT :]
    whole = prune_resnet.the_whole(options)
    macs = compare([whole], litert=()).to_dict()[whole.name]["macs"]
    rows = []
    for name, importance in importances(
        whole, x[:LABELLED], y[:LABELLED]
    ).items():
        for scope in ("group", "global"):
            for share in SHARES[-1:] if options.smoke else SHARES:
                network = prune_channels(
                    whole,
                    importance=importance,
                    macs=int(share * macs),
                    scope=scope,
                )
                prune_resnet.reestimate(network, x)
                metrics = {
                    "parameters": network.count_params(),
                    "validation_accuracy": results.accuracy(network, held_out),
                }
                title = f"{name}, {scope}, {share:g} of the MACs"
                print(f"{title}: {metrics['validation_accuracy']:.2%}")
                rows.append(
                    results.row_of(
                        title,
                        options,
                        metrics,
                        network=whole.name,
                        importance=name,
                        scope=scope,
                        share_of_macs=share,
                    )
                )
    results_schema.write(rows, options.out)


if __name__ == "__main__":
    main()
