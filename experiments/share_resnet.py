"""A ResNet-56 in a tenth of its bytes, and as good as it was.

    python experiments/share_resnet.py --data FOLDER

The weights of each layer share a few values, which are trained on: the teacher
is the network as it was. `pack` writes it into one file, which is read again
and scored. FOLDER holds cifar10.npz and cifar10_resnet56_state.npz.

Source: Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149.
"""

import functools

import cifar10
import experiment
import experiment_results as results
import keras
import prune_resnet

from keras_distill.compression import WeightSharing
from keras_distill.compression import pack
from keras_distill.compression import unpack


def copy_of(network):
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


def main():
    parser = experiment.parser_of(__doc__, epochs=3)
    parser.add_argument("--num-clusters", type=int, default=8)
    parser.set_defaults(learning_rate=1e-3, temperature=4.0, smallest_area=0.8)
    options = experiment.parse(parser)
    data, scored = experiment.split(
        cifar10.load(options), options, cifar10.HELD_OUT
    )
    whole = prune_resnet.the_whole(options)
    name = f"{whole.name}_{options.num_clusters}-values_seed-{options.seed}"
    results.refuse_other_settings(name, options)
    shared = experiment.trained(
        name,
        functools.partial(copy_of, whole),
        functools.partial(
            experiment.train_taught,
            teacher=experiment.in_policy(
                options.teacher_dtype, lambda: prune_resnet.the_whole(options)
            ),
            views=cifar10.views(options),
            data=data,
            scored=scored,
            name=name,
            options=options,
            callbacks=[WeightSharing(options.num_clusters)],
        ),
        options,
    )
    path = options.workdir / f"{name}.packed"
    pack(shared, path)
    results.report(name, unpack(path), scored, options, whole)
    before = sum(weight.nbytes for weight in whole.get_weights())
    print(
        f"{path}: {path.stat().st_size:,} bytes, "
        f"{before / path.stat().st_size:.1f} times smaller than {before:,}"
    )


if __name__ == "__main__":
    main()
