"""MNIST: a CNN of 1.4 million parameters teaches one of 20 thousand.

    python experiments/mnist.py                         # downloads MNIST
    python experiments/mnist.py --data FOLDER           # reads FOLDER/mnist.npz
    python experiments/mnist.py --loss alone            # labels, no teacher
    python experiments/mnist.py --mix --epochs 200 --recorded-epochs 20

The pair of the Keras example for distillation: convolutions 256 and 512 wide
teach 16 and 32, with an activation after the second as well. The teacher is
trained first, with labels. All networks see random crops; nothing is chosen by
the test accuracy, and each network is scored as it ends. The backend is
Keras's: `KERAS_BACKEND=jax`.
"""

import experiment
import keras
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
HELD_OUT = 5000


def load(options):
    """Return MNIST as `((x, y), (x_test, y_test))`, x in [0, 255]."""
    if options.data is None and options.smoke:
        return experiment.random_data((28, 28, 1), (28, 28, 1), 10)
    if options.data is None:
        print("Loading MNIST with keras.datasets.mnist (11 MB, once).")
        splits = keras.datasets.mnist.load_data()
    else:
        arrays = experiment.arrays_in(options.data, "mnist.npz", ARRAYS)
        splits = (arrays[:2], arrays[2:])
    for x, y in splits:
        if x.shape[1:] != (28, 28) or len(x) != len(y):
            raise SystemExit(
                "Expected images of 28x28, and a label for each. "
                f"Received shapes: {x.shape}, {y.shape}"
            )
    return tuple((x[..., None], y.astype("int32")) for x, y in splits)


def cnn(widths, name):
    """Two convolutions of stride 2 and a dense layer that returns logits."""
    first, second = widths
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(first, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.MaxPooling2D(2, strides=1, padding="same"),
            layers.Conv2D(second, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(10, dtype="float32"),
        ],
        name=name,
    )


def views(options):
    """Random crops; shifts and MixUp if asked for."""
    chain = [
        InceptionCrop(
            28,
            28,
            area_range=(options.smallest_area, 1.0),
            aspect_ratio_range=(0.8, 1.25),
        ),
        *experiment.shifts(options),
    ]
    if options.mix:
        chain.append(MixUp(options.mix))
    return ConsistentAugment(chain, seed=experiment.view_seed(options))


def the_teacher(options, data, scored):
    """Return the teacher, trained with labels; one for all seeds."""
    settings = experiment.for_teacher(options)
    return experiment.trained(
        "teacher",
        lambda: experiment.in_policy(
            options.teacher_dtype, lambda: cnn((256, 512), "teacher")
        ),
        lambda network: experiment.train_alone(
            network, views(settings), data, scored, "teacher", settings
        ),
        settings,
    )


def main():
    parser = experiment.parser_of(__doc__, epochs=25)
    parser.set_defaults(smallest_area=0.6)
    options = experiment.parse(parser)
    data, scored = experiment.split(load(options), options, HELD_OUT)
    experiment.run(
        options,
        data,
        scored,
        views=lambda: views(options),
        student=lambda: cnn((16, 32), "student"),
        teacher=lambda: the_teacher(options, data, scored),
    )


if __name__ == "__main__":
    main()
