"""Which layers can give everyone the same view, and which can't.

Every row was found by applying one drawing twice, on all three backends.
"""

import keras
from keras import tree

from keras_distill.views._inception_crop import InceptionCrop
from keras_distill.views._layer_kinds import check_labels
from keras_distill.views._layer_kinds import data_format_of
from keras_distill.views._layer_kinds import keras_layers
from keras_distill.views._mix_up import MixUp

# These draw (again) while they apply, or ignore the generator they are given.
_INCONSISTENT = keras_layers(
    "AugMix", "RandAugment", "RandomColorJitter", "RandomElasticTransform"
)

# What these draw does not depend on the size of the image, so that it can be
# applied to a second rendering of another size.
_SIZE_FREE = (
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

# What these draw has as many channels as the images.
_ONE_CHANNEL_COUNT = keras_layers("CutMix", "RandomErasing")


def check_layers(layers):
    """Raise if a layer, or the chain, can't give everyone the same view."""
    two_sizes_from = None
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "ConsistentAugment takes Keras layers. "
                f"Received: {layer!r} of type {type(layer).__name__}"
            )
        kind = type(layer).__name__
        splits = hasattr(layer, "get_random_transformation") and hasattr(
            layer, "transform_images"
        )
        if not splits or isinstance(layer, _INCONSISTENT):
            raise ValueError(
                f"The layer {layer.name!r} ({kind}) can't be consistent: "
                "it does not keep drawing apart from applying, so labels and "
                "a second rendering could not follow it. If it is random, use "
                "it in the data pipeline, before the Distiller; if it is "
                "fixed preprocessing, pass it as `student_preprocessing` and "
                "`teacher_preprocessing`."
            )
        check_labels(layer)
        if two_sizes_from and _renders_two_sizes(layer):
            raise ValueError(
                f"Only one layer can render a second size. Received "
                f"`teacher_size` in {two_sizes_from!r} and in {layer.name!r}."
            )
        if two_sizes_from and not isinstance(layer, _SIZE_FREE):
            raise ValueError(
                f"The layer {layer.name!r} ({kind}) draws for one image size "
                f"and can't follow {two_sizes_from!r}, which renders two "
                "(`teacher_size`). Put it before the crop."
            )
        if _renders_two_sizes(layer):
            two_sizes_from = layer.name
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


def check_batches(images, layers, name):
    """Raise unless the layers can give every leaf the same transformations."""
    shapes = [tuple(image.shape) for image in tree.flatten(images)]
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(
            f"{name} augments batches of images, of rank 4. "
            f"Received: shapes={shapes}. Augment other data in the pipeline."
        )
    if tree.is_nested(images) and any(map(_renders_two_sizes, layers)):
        raise ValueError(
            "`teacher_size` renders one image per sample a second time. "
            f"Received {len(shapes)} images per sample, of shapes {shapes}."
        )
    first = data_format_of(layers) == "channels_first"
    sizes = {shape[2:] if first else shape[1:3] for shape in shapes}
    channels = {shape[1 if first else 3] for shape in shapes}
    for layer in layers:
        if len(sizes) > 1 and not isinstance(layer, _SIZE_FREE):
            _refuse_images(layer, "image size", shapes)
        if len(channels) > 1 and isinstance(layer, _ONE_CHANNEL_COUNT):
            _refuse_images(layer, "number of channels", shapes)


def _refuse_images(layer, what, shapes):
    raise ValueError(
        f"The layer {layer.name!r} ({type(layer).__name__}) draws for one "
        f"{what}, and the images of a sample differ: shapes={shapes}. Make "
        "them alike in the data pipeline, or apply the layer there."
    )
