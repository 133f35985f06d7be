"""Which layers can give everyone the same view, and which can't.

Every row was found by applying one drawing twice, on all three backends.
"""

import keras
from keras import tree

from keras_distill.views.inception_crop import InceptionCrop
from keras_distill.views.mix_up import MixUp


def _keras_layers(*names):
    """Return the Keras layers of these names that this Keras has."""
    return tuple(
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    )


# These draw (again) while they apply, or ignore the generator they are given.
_INCONSISTENT = _keras_layers(
    "AugMix", "RandAugment", "RandomColorJitter", "RandomElasticTransform"
)

# These blend different images of a batch, so labels have to follow. A layer
# of the user's says so by `mixes_labels = True`.
_MIXING = (MixUp, *_keras_layers("MixUp", "CutMix"))

# These leave every pixel where it is.
IN_PLACE = _keras_layers(
    "AutoContrast",
    "ContrastLimitedAdaptiveHistogramEqualization",
    "Equalization",
    "MaxNumBoundingBoxes",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomContrast",
    "RandomErasing",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPosterization",
    "RandomSaturation",
    "RandomSharpness",
    "Solarization",
)

# What these draw does not depend on the size of the image, so that it can be
# applied to a second rendering of another size.
_SIZE_FREE = (
    InceptionCrop,
    MixUp,
    *_keras_layers(
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
        _check_labels(layer)
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


def _check_labels(layer):
    """Raise unless it is clear what the layer does to labels."""
    kind = type(layer).__name__
    owner = provider(layer, "transform_labels")
    says = getattr(layer, "mixes_labels", None)
    if says and owner is None:
        raise ValueError(
            f"The layer {layer.name!r} ({kind}) says `mixes_labels = True` and "
            "has no method `transform_labels(labels, transformation, "
            "training=True)`."
        )
    own = owner is not None and not _is_keras(owner)
    if own and says is None and not mixes(layer):
        raise ValueError(
            f"The layer {layer.name!r} ({kind}) has a `transform_labels` of "
            "its own, and does not say whether labels have to go through it. "
            "Give the class the attribute `mixes_labels = True`: labels and "
            "weights then reach `transform_labels` as floats, class indices "
            "as one-hot rows. If the layer leaves labels as they are, write "
            "`mixes_labels = False`."
        )


def mixes(layer):
    """Whether a layer changes the labels and weights of its samples."""
    if isinstance(layer, _MIXING):
        return True
    return bool(getattr(layer, "mixes_labels", False))


def moves_pixels(layer):
    """Whether a layer moves pixels, or may: a layer of the user's."""
    return known_class(layer, (*IN_PLACE, *_MIXING)) is None


def concerns_maps(layer):
    """Whether maps of the images have to follow a layer."""
    return moves_pixels(layer) or mixes(layer)


def known_class(layer, classes):
    """Return the class among `classes` whose transformations a layer has.

    A subclass that transforms images or masks in its own way is another layer:
    `None`.
    """
    for cls in type(layer).__mro__:
        if cls in classes:
            return cls
        if _TRANSFORMS & set(vars(cls)):
            return None
    return None


_TRANSFORMS = {
    "transform_images",
    "_transform_images",
    "transform_segmentation_masks",
}


def provider(layer, method):
    """Return the class that a layer has a method from, or `None`."""
    for cls in type(layer).__mro__:
        if method in vars(cls):
            return cls
    return None


def own_method(layer, method):
    """Return a layer's method if it does not come with Keras, or `None`."""
    owner = provider(layer, method)
    return None if owner is None or _is_keras(owner) else getattr(layer, method)


def _is_keras(cls):
    return cls.__module__.split(".")[0] == "keras"


def shape_after(layer, shape):
    """Return the shape that a layer gives images of this shape."""
    try:
        return layer.compute_output_shape(shape)
    except NotImplementedError:
        # Keras's answer for a layer that does not say; most keep the shape.
        return shape


def data_format_of(layers):
    """Return the data format of a chain."""
    for layer in layers:
        if getattr(layer, "data_format", None) is not None:
            return layer.data_format
    return keras.config.image_data_format()


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
    if len({shape[1:3] for shape in shapes}) > 1:
        for layer in layers:
            if not isinstance(layer, _SIZE_FREE):
                raise ValueError(
                    f"The layer {layer.name!r} ({type(layer).__name__}) draws "
                    "for one image size, and the images of a sample differ: "
                    f"shapes={shapes}. Resize them in the data pipeline."
                )
