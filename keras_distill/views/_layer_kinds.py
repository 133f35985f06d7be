"""What a layer does to labels and to pixels, and who says so.

Keras's layers are known by name. A layer of the user's says it by attributes
and methods; what it does not say is refused where it matters.
"""

import keras

from keras_distill.views._mix_up import MixUp


def keras_layers(*names):
    """Return the Keras layers of these names that this Keras has."""
    return tuple(
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    )


# These blend different images of a batch, so labels have to follow. A layer
# of the user's says so by `mixes_labels = True`.
_MIXING = (MixUp, *keras_layers("MixUp", "CutMix"))

# These leave every pixel where it is.
IN_PLACE = keras_layers(
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


def check_labels(layer):
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
    own = owner is not None and not is_keras(owner)
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


def is_keras(cls):
    """Whether a class comes with Keras."""
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
