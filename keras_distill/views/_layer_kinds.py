"""What a layer does to labels and to pixels.

Layers of Keras are known by name. A custom layer declares it by attributes and
methods. If it does not, and it matters, the layer is refused.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._graphs._elementwise import is_of_keras
from keras_distill.views._mix_up import MixUp


def keras_layers(*names: str) -> tuple[type, ...]:
    """Return the Keras layers of these names that this version of Keras has."""
    return tuple(
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    )


# These combine different images of a batch, so labels have to follow. A custom
# layer declares this by `mixes_labels = True`.
_MIXING = (MixUp, *keras_layers("MixUp", "CutMix"))

# These do not move pixels.
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

_TRANSFORMS = {
    "transform_images",
    "_transform_images",
    "transform_segmentation_masks",
}


def check_labels(layer: keras.layers.Layer) -> None:
    """Check that it is known what the layer does to labels.

    Raises:
        ValueError: if the method `transform_labels` and the attribute
            `mixes_labels` contradict each other, or one of them is missing.
    """
    kind = type(layer).__name__
    owner = defining_class(layer, "transform_labels")
    declared = getattr(layer, "mixes_labels", None)
    if declared and owner is None:
        raise ValueError(
            "A layer with `mixes_labels = True` must have a method "
            "`transform_labels(labels, transformation, training=True)`. "
            f"Received: the layer {layer.name!r} ({kind}) without this method."
        )
    is_custom = owner is not None and not is_of_keras(owner)
    if is_custom and declared is None and not mixes_labels(layer):
        raise ValueError(
            f"The layer {layer.name!r} ({kind}) has a custom "
            "`transform_labels`, but no attribute `mixes_labels`. If it "
            "changes labels, add the class attribute `mixes_labels = True`: "
            "labels and weights are then passed to `transform_labels` as "
            "floats, and class indices as one-hot rows. If it leaves labels "
            "unchanged, add `mixes_labels = False`."
        )


def mixes_labels(layer: keras.layers.Layer) -> bool:
    """Return whether a layer changes the labels and weights of its samples."""
    if isinstance(layer, _MIXING):
        return True
    return bool(getattr(layer, "mixes_labels", False))


def moves_pixels(layer: keras.layers.Layer) -> bool:
    """Return whether a layer moves pixels. A custom layer may, so it does."""
    return known_class(layer, (*IN_PLACE, *_MIXING)) is None


def changes_maps(layer: keras.layers.Layer) -> bool:
    """Return whether a layer changes masks and weights per pixel."""
    return moves_pixels(layer) or mixes_labels(layer)


def known_class(
    layer: keras.layers.Layer, classes: Iterable[type]
) -> type | None:
    """Return the class among `classes` that defines a layer's transformation.

    A subclass that transforms images or masks differently is a different layer:
    for this one, `None` is returned.
    """
    classes = tuple(classes)
    for cls in type(layer).__mro__:
        if cls in classes:
            return cls
        if _TRANSFORMS & set(vars(cls)):
            return None
    return None


def defining_class(layer: keras.layers.Layer, method: str) -> type | None:
    """Return the class that defines a method of a layer, or `None`."""
    for cls in type(layer).__mro__:
        if method in vars(cls):
            return cls
    return None


def shape_after(layer: keras.layers.Layer, shape: Sequence[int | None]) -> Any:
    """Return the shape of the images after a layer.

    Args:
        layer: a layer of images.
        shape: static shape of the images.

    Returns:
        A shape, or a dict of two shapes with `teacher_size`.
    """
    try:
        return layer.compute_output_shape(shape)
    except NotImplementedError:
        # Keras raises it for layers without this method. Most keep the shape.
        return shape


def data_format_of(layers: Iterable[keras.layers.Layer]) -> str:
    """Return the data format of a list of layers."""
    for layer in layers:
        if getattr(layer, "data_format", None) is not None:
            return layer.data_format
    return keras.config.image_data_format()
