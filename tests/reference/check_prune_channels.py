"""Prunes each family of `keras.applications` by half, and checks the outputs.

The test suite has small graphs for each kind of coupling. This script checks
large models. It takes some minutes. Run it in the root of the checkout:

    KERAS_BACKEND=tensorflow PYTHONPATH=. python \
        tests/reference/check_prune_channels.py

For each model, it prints the largest difference between the pruned model and
the original with masked channels, in float64 and in float32, and the share of
parameters that is left. Differences are relative to the standard deviation of
the outputs over eight inputs. Weights are random, and BatchNormalizations have
the statistics of these inputs. The script fails if a difference is above 1e-5
in float64. In float32, differences are larger, because dozens of random layers
amplify rounding errors.
"""

import sys

import keras
import networks
import pruning

from keras_distill.compression import prune_channels

# The smallest input sizes, for models that require more than 32.
SIZES = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
FAMILIES = (
    "ResNet50",
    "ResNet50V2",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "DenseNet121",
    "VGG16",
    "Xception",
    "InceptionV3",
    "InceptionResNetV2",
    "NASNetMobile",
    "ConvNeXtTiny",
)


def application(family):
    size = SIZES.get(family, 32)
    return getattr(keras.applications, family)(
        weights=None,
        input_shape=(size, size, 3),
        classes=5,
        classifier_activation=None,
    )


def backbone():
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256],
        stackwise_num_blocks=[2, 2, 2],
        stackwise_num_strides=[1, 2, 2],
        block_type="bottleneck_block",
        use_pre_activation=False,
        image_shape=(32, 32, 3),
    )


def models():
    for depth in (20, 56):
        for shortcut in ("projection", "padding"):
            yield (
                f"CIFAR ResNet-{depth}, {shortcut}",
                lambda d=depth, s=shortcut: networks.cifar_resnet(d, s),
            )
    yield "KerasHub ResNet backbone", backbone
    for family in FAMILIES:
        yield family, lambda f=family: application(f)


def measure(make, precision):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    model = make()
    difference, small = pruning.largest_difference(
        model, lambda m: prune_channels(m, 0.5, importance=pruning.scores)
    )
    return difference, small.count_params() / model.count_params()


def main(names):
    worst = 0.0
    print("model                          float64   float32   parameters")
    for name, make in models():
        if not names or name in names:
            exact, left = measure(make, "float64")
            single, _ = measure(make, "float32")
            print(
                f"{name:29} {exact:9.1e} {single:9.1e} {left:9.3f}", flush=True
            )
            worst = max(worst, exact)
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main(sys.argv[1:])
