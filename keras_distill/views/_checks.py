"""Checks that layers can give teacher and student the same view.

The lists of layers were found by applying one transformation twice, on all
three backends.
"""

from collections.abc import Iterable
from collections.abc import Sequence

import keras
from keras import tree

from keras_distill._typing import Tensors
from keras_distill.views._inception_crop import InceptionCrop
from keras_distill.views._layer_kinds import check_labels
from keras_distill.views._layer_kinds import data_format_of
from keras_distill.views._layer_kinds import keras_layers
from keras_distill.views._mix_up import MixUp

# These draw again while they apply, or ignore the given generator.
_INCONSISTENT = keras_layers(
    "AugMix", "RandAugment", "RandomColorJitter", "RandomElasticTransform"
)

# Their transformations do not depend on the size of the images, so they can be
# applied to images of two sizes.
_SIZE_INDEPENDENT = (
    InceptionCrop,
    MixUp,
    *keras_layers(
        "MixUp",
        "RandomBrightness",
        "RandomColorDegeneration",
        "RandomContrast",
        "RandomFlip",
        "RandomGrayscale",
        "RandomHue",
        "RandomInvert",
        "RandomPosterization",
        "RandomSaturation",
        "Solarization",
    ),
)

# Their transformations have the number of channels of the images.
_CHANNEL_DEPENDENT = keras_layers("CutMix", "RandomErasing")


def check_layers(layers: Iterable[keras.layers.Layer]) -> None:
    """Check that the layers can give teacher and student the same view.

    Raises:
        TypeError: if one of them is not a Keras layer.
        ValueError: if a layer, or the combination, cannot be consistent.
    """
    layers = list(layers)
    two_sizes_from = None
    for layer in layers:
        _check_layer(layer)
        if two_sizes_from:
            _check_after_two_sizes(layer, two_sizes_from)
        if _renders_two_sizes(layer):
            two_sizes_from = layer.name
    _check_one_data_format(layers)


def _check_layer(layer):
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            "ConsistentAugment takes Keras layers. "
            f"Received: {layer!r} of type {type(layer).__name__}"
        )
    separates = hasattr(layer, "get_random_transformation") and hasattr(
        layer, "transform_images"
    )
    if not separates or isinstance(layer, _INCONSISTENT):
        raise ValueError(
            f"The layer {layer.name!r} ({type(layer).__name__}) cannot be "
            "consistent, because it does not draw and apply a transformation "
            "in two methods. So the same transformation cannot be applied to "
            "labels or to images of a second size. Use a random layer in the "
            "data pipeline, before the Distiller. Pass fixed preprocessing as "
            "`student_preprocessing` and `teacher_preprocessing`."
        )
    check_labels(layer)


def _check_after_two_sizes(layer, two_sizes_from):
    if _renders_two_sizes(layer):
        raise ValueError(
            "Only one layer can render a second size. Received: "
            f"`teacher_size` in {two_sizes_from!r} and in {layer.name!r}."
        )
    if not isinstance(layer, _SIZE_INDEPENDENT):
        raise ValueError(
            f"The layer {layer.name!r} ({type(layer).__name__}) draws for one "
            f"image size and cannot follow {two_sizes_from!r}, which renders "
            "two (`teacher_size`). Put it before the crop."
        )


def _check_one_data_format(layers):
    formats = {
        layer.name: layer.data_format
        for layer in layers
        if getattr(layer, "data_format", None) is not None
    }
    if len(set(formats.values())) > 1:
        raise ValueError(
            "The layers of a ConsistentAugment must share one `data_format`. "
            f"Received: {formats}"
        )


def _renders_two_sizes(layer):
    return getattr(layer, "teacher_size", None) is not None


def check_batches(
    images: Tensors, layers: Sequence[keras.layers.Layer], name: str
) -> None:
    """Check that the layers can transform all images of a sample in one way.

    Args:
        images: a batch of images, or a structure of them.
        layers: list of layers.
        name: the name of the augmentation, for messages.

    Raises:
        ValueError: if the ranks, sizes or channels of the images are not
            supported.
    """
    shapes = [tuple(image.shape) for image in tree.flatten(images)]
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(
            f"{name} augments batches of images, of rank 4. "
            f"Received: shapes={shapes}. Augment other data in the pipeline."
        )
    if tree.is_nested(images) and any(map(_renders_two_sizes, layers)):
        raise ValueError(
            "`teacher_size` supports one image per sample. Received: "
            f"{len(shapes)} images per sample, of shapes {shapes}. Remove "
            "`teacher_size`, or resize in the data pipeline."
        )
    first = data_format_of(layers) == "channels_first"
    sizes = {shape[2:] if first else shape[1:3] for shape in shapes}
    channels = {shape[1 if first else 3] for shape in shapes}
    for layer in layers:
        if len(sizes) > 1 and not isinstance(layer, _SIZE_INDEPENDENT):
            _refuse_images(layer, "image size", shapes)
        if len(channels) > 1 and isinstance(layer, _CHANNEL_DEPENDENT):
            _refuse_images(layer, "number of channels", shapes)


def _refuse_images(layer, what, shapes):
    raise ValueError(
        f"The layer {layer.name!r} ({type(layer).__name__}) draws for one "
        f"{what}, but the images of a sample differ. Received: shapes="
        f"{shapes}. Use the same {what} for all images of a sample, or apply "
        "the layer in the data pipeline."
    )
