"""CIFAR-10: a ResNet-20 in LiteRT, with rounding after or during training.

    python experiments/int8.py --data FOLDER

The network is read from FOLDER/cifar10_resnet20_state.npz (see `cifar10.py`).
It is exported in every precision, and once more after a short
quantization-aware training, with the original network as its teacher. The
script prints the bytes, the accuracy of each file in the LiteRT interpreter,
and that of the Keras model that was exported.
"""

import argparse
import pathlib

import cifar10
import experiment_results as results
import keras
import numpy as np

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill.compression import export_litert
from keras_distill.compression import quantize_aware

BATCH = 128


def learned_in_int8(network, images, options):
    """Return the network after training under its own full precision."""
    student = quantize_aware(network)
    distiller = Distiller(
        student=student,
        teacher=network,
        augment=ConsistentAugment(
            [InceptionCrop(32, 32, area_range=(0.5, 1.0))], seed=options.seed
        ),
    )
    steps = 2 if options.smoke else options.steps
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    distiller.compile(keras.optimizers.Adam(rate), loss=FunctionMatching())
    generator = np.random.default_rng(options.seed)
    drawn = generator.integers(0, len(images), steps * BATCH)
    distiller.fit(images[drawn], batch_size=BATCH, verbose=2)
    return student


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="folder with the data")
    add("--steps", type=int, default=300)
    add("--learning-rate", type=float, default=1e-4)
    add("--seed", type=int, default=0)
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs"))
    add("--smoke", action="store_true", help="two steps, to see it run")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)

    (images, _), test = cifar10.load(options)
    network = (
        cifar10.resnet(8, "noise")
        if options.smoke
        else cifar10.pretrained(20, options.data)
    )
    if options.smoke:
        test = [array[:50] for array in test]
    trained = learned_in_int8(network, images, options)
    rounded = {"representative_data": images[:: -(-len(images) // 500)]}
    for name, model, precision, arguments in (
        ("float32", network, "float32", {}),
        ("float16", network, "float16", {}),
        ("dynamic int8", network, "dynamic_int8", {}),
        ("int8 after training", network, "int8", rounded),
        ("int8 while training", trained, "int8", {}),
    ):
        path = options.workdir / f"{name.replace(' ', '_')}.tflite"
        export_litert(model, path, precision, **arguments)
        print(
            f"{name:20} {path.stat().st_size:9,} bytes, "
            f"file {results.accuracy_of_file(path, test):.2%}, "
            f"Keras {results.accuracy(model, test):.2%}"
        )


if __name__ == "__main__":
    main()
