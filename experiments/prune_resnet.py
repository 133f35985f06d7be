"""A ResNet-56 without half of its channels, distilled from the original.

    python experiments/prune_resnet.py --data FOLDER --loss alone
    python experiments/prune_resnet.py --data FOLDER --recorded-epochs 10
    python experiments/prune_resnet.py --data FOLDER --recorded-epochs 10 \\
        --report

A ResNet-56 that was trained on CIFAR-10 loses half of its channels, which
leaves a quarter of its weights. The statistics of its normalizations are
estimated again. It is then trained with labels, or with the original network as
its teacher. `--report` compares the two: files, time, energy and accuracy.
FOLDER holds cifar10.npz and cifar10_resnet56_state.npz.
"""

import argparse
import gc

import cifar10
import experiment
import experiment_results as results

from keras_distill import compare
from keras_distill.compression import prune_channels


def pruned(whole, x, options):
    """Return the smaller network, as it is before training."""
    network = prune_channels(whole, options.ratio)
    reestimate(network, x)
    return network


def reestimate(network, x, images=12_800, batch_size=128):
    """Let the normalizations see what the smaller network makes of images.

    Their statistics are those of the whole network, and a short training would
    leave them stale.
    """
    for begin in range(0, min(images, len(x)), batch_size):
        network(x[begin : begin + batch_size], training=True)
        # On PyTorch, each call leaves its graph in a reference cycle: without
        # this, a ResNet-56 takes 20 GB.
        gc.collect()


def the_whole(options):
    if options.smoke and options.data is None:
        return cifar10.resnet(8, "resnet8")
    return cifar10.pretrained(56, options.data)


def main():
    parser = experiment.parser_of(__doc__, epochs=10)
    parser.add_argument("--ratio", type=float, default=0.5, help="removed")
    parser.add_argument("--report", action="store_true")
    parser.set_defaults(learning_rate=1e-3)
    options = experiment.parse(parser)
    data, scored = experiment.split(
        cifar10.load(options), options, cifar10.HELD_OUT
    )
    whole = the_whole(options)
    half = pruned(whole, data[0], options)
    untrained = {**vars(options), "loss": "untrained", "epochs": 0}
    untrained = argparse.Namespace(**untrained)
    results.report("pruned", half, scored, untrained, whole)
    half = experiment.run(
        options,
        data,
        scored,
        views=lambda: cifar10.views(options),
        student=lambda: half,
        teacher=lambda: experiment.in_policy(
            options.teacher_dtype, lambda: the_whole(options)
        ),
    )
    if options.report:
        comparison = compare(
            {whole.name: whole, "half": half},
            scored,
            litert=() if options.smoke else None,
            representative_data=data[0][:512],
        )
        print(comparison)
        path = options.workdir / "comparison.md"
        path.write_text(comparison.to_markdown() + "\n")


if __name__ == "__main__":
    main()
