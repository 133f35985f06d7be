"""ConsistentAugment: one random view of a batch, for both models.

The Distiller draws the view outside both models, so teacher and student get the
same pixels. This layer also changes labels, masks and weights to match the view
(`_follow.py`), and can return the same view at the resolution of the teacher.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops
from keras import tree

from keras_distill._typing import Tensor
from keras_distill._typing import Tensors
from keras_distill.views import _checks
from keras_distill.views import _follow
from keras_distill.views import _layer_kinds
from keras_distill.views import _transformations


@keras.saving.register_keras_serializable(package="keras_distill")
class ConsistentAugment(keras.layers.Layer):
    """Applies augmentations, with the same random numbers for all data.

    Supported are the layers of this package, and Keras image layers that draw
    (`get_random_transformation`) and apply (`transform_images`) a
    transformation in two methods, such as `RandomFlip`, `RandomContrast`,
    `RandomErasing` or `CutMix`. Other layers are refused. Use them in the data
    pipeline, where both models get the result anyway.

    Labels, masks and weights change with the view, see `follow`. An error is
    raised if this is not possible. A custom layer that changes labels requires
    the class attribute `mixes_labels = True`.

    Args:
        layers: list of layers, applied in order.
        seed: int or `None`. If given, one generator draws for all layers, and
            the seeds of the layers are not used. If `None`, each layer draws
            with its own generator.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        data: batch of images, or a dict with `"images"` and optionally
            `"labels"`, `"sample_weight"` and `"segmentation_masks"`, which
            change as described in `follow`. If a layer blends images, labels
            and masks must be floats (one-hot).
        training: bool. If `False`, the data is returned unchanged.

    Input shape:
        The input shape of the first layer: `(batch, height, width, channels)`,
        or `(batch, channels, height, width)`.

    Output shape:
        The output shape of the last layer. With an `InceptionCrop` that has a
        `teacher_size`, the images are `{"student": ..., "teacher": ...}`.

    Raises:
        TypeError: if `layers` contains an object that is not a Keras layer.
        ValueError: if a layer cannot be consistent, if it is unknown how a
            layer changes labels, or if the data formats differ.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import ConsistentAugment, InceptionCrop, MixUp

    augment = ConsistentAugment(
        [InceptionCrop(32, 32), keras.layers.RandomFlip("horizontal"), MixUp()],
        seed=1,
    )
    images = np.random.randint(0, 256, size=(8, 48, 48, 3), dtype="uint8")
    print(augment(images, training=True).shape)  # (8, 32, 32, 3)
    ```
    """

    def __init__(
        self,
        layers: keras.layers.Layer | Sequence[keras.layers.Layer],
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Without autocast: each layer casts its own inputs.
        super().__init__(autocast=False, **kwargs)
        if isinstance(layers, keras.layers.Layer):
            layers = [layers]
        self.layers = list(layers)
        _checks.check_layers(self.layers)
        self.seed = seed
        self.seed_generator = (
            None if seed is None else keras.random.SeedGenerator(seed)
        )
        for layer in self.layers:
            if not layer.built:
                layer.build(None)
        self.built = True

    @property
    def mixes_labels(self) -> bool:
        """Whether a layer combines different images of a batch."""
        return any(map(_layer_kinds.mixes_labels, self.layers))

    @property
    def moves_pixels(self) -> bool:
        """Whether a layer moves pixels.

        Layers of Keras that only change colours, or that mix images pixel by
        pixel, do not move pixels. Custom layers may, so they count as layers
        that do.
        """
        return any(map(_layer_kinds.moves_pixels, self.layers))

    def draw(
        self, images: Tensors, recorded: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensors, list[Any]]:
        """Draw a view of a batch of images.

        Each layer draws for the image size that the layer before it returns, so
        drawing and applying alternate.

        Args:
            images: batch of images, or a dict or tuple of such batches. All get
                the same transformations.
            recorded: dict of the recorded tensors of earlier transformations,
                for images of the same shape, to get the earlier view again.

        Returns:
            `(view, transformations)`: the augmented images, and a list with one
            transformation per layer, for `follow`.
        """
        view = tree.map_structure(ops.convert_to_tensor, images)
        _checks.check_batches(view, self.layers, self.name)
        transformations = []
        for index, layer in enumerate(self.layers):
            transformation = layer.get_random_transformation(
                tree.flatten(view)[0], training=True, seed=self.seed_generator
            )
            if recorded is not None:
                transformation = _transformations.with_recorded_tensors(
                    transformation, index, recorded
                )

            def apply(images, layer=layer, transformation=transformation):
                return _transformations.apply(layer, images, transformation)

            view = tree.map_structure(apply, view)
            transformations.append(transformation)
        return view, transformations

    def follow(
        self,
        values: Tensor,
        transformations: Sequence[Any],
        images: Tensors,
        num_classes: int | None = None,
    ) -> Tensor:
        """Return labels, masks or weights that match the drawn view.

        Values per sample (rank 1 and 2) change if a layer mixes images. `MixUp`
        blends them with its weights, and `keras.layers.CutMix` with the area of
        its rectangle. A custom layer changes them in its `transform_labels`.

        Maps (rank 3 and 4, with the height and width of the images) are
        transformed by every layer, with nearest-neighbour interpolation, which
        keeps dtype and values. `MixUp` blends them pixel by pixel, as floats,
        and `CutMix` pastes them. Layers that erase or change colours do not
        change them. Maps at 1/2, 1/4, ... of the height and width are supported
        by `InceptionCrop`, `MixUp`, and Keras's crops, `Resizing`, `RandomFlip`
        and `MixUp`.

        If no layer moves or mixes pixels, the values are returned unchanged.

        Args:
            values: a tensor `(batch, ...)`.
            transformations: the transformations that `draw` returned.
            images: the images that `draw` got; only static shapes are read.
            num_classes: int if `values` are class indices, of shape `(batch,)`,
                `(batch, 1)`, `(batch, height, width)` or with one channel, of
                any dtype. If layers mix images, they become one-hot vectors, on
                a new last axis or instead of the channel. An index out of range
                (a void label) gives zeros. `None` for all other values.

        Returns:
            A tensor, or `values` itself if nothing changes.

        Raises:
            ValueError: if the values cannot match the view. Reasons are: boxes
                and sequences, if pixels move or mix; maps at another
                resolution, with layers that require the resolution of the
                images; pixels from outside the image (`fill_mode="constant"`,
                `RandomPerspective`, padding), which have no label; custom
                layers without `transform_segmentation_masks`; and flattened
                maps, `(batch, height * width)`.

        Example:

        ```python
        import keras
        import numpy as np
        from keras_distill import ConsistentAugment, InceptionCrop

        augment = ConsistentAugment(
            [InceptionCrop(32, 32), keras.layers.RandomFlip()]
        )
        images = np.random.rand(8, 48, 48, 3)
        masks = np.random.randint(0, 21, size=(8, 48, 48))
        view, drawn = augment.draw(images)
        print(augment.follow(masks, drawn, images).shape)  # (8, 32, 32)
        ```
        """
        return _follow.follow(
            self.layers, values, transformations, images, num_classes
        )

    def view_spec(self, images: Tensors) -> Tensors:
        """Return symbolic tensors with the shapes of the view of `images`.

        Args:
            images: batch of images, or a dict or tuple of them; only shapes
                are read.
        """

        def spec(shape):
            return keras.KerasTensor(tuple(shape), dtype=self.compute_dtype)

        _checks.check_batches(images, self.layers, self.name)

        def view(image):
            shape = self.compute_output_shape(tuple(image.shape))
            if isinstance(shape, dict):
                return {model: spec(size) for model, size in shape.items()}
            return spec(shape)

        return tree.map_structure(view, images)

    def call(self, data: Tensors, training: bool = True) -> Tensors:
        if not training:
            return data
        if not (isinstance(data, dict) and "images" in data):
            return self.draw(data)[0]
        images, transformations = self.draw(data["images"])
        augmented = {**data, "images": images}
        for key in ("labels", "segmentation_masks", "sample_weight"):
            if key not in data:
                continue
            # The number of classes is unknown here.
            classes = None if key == "sample_weight" else _follow.UNKNOWN

            def follow(values, num_classes=classes):
                return self.follow(
                    values, transformations, data["images"], num_classes
                )

            augmented[key] = tree.map_structure(follow, data[key])
        return augmented

    def compute_output_shape(self, input_shape: Any) -> Any:
        shapes = input_shape
        for layer in self.layers:
            if isinstance(shapes, dict):
                shapes = {
                    key: _layer_kinds.shape_after(layer, shape)
                    for key, shape in shapes.items()
                }
            else:
                shapes = _layer_kinds.shape_after(layer, tuple(shapes))
        return shapes

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layers": [
                keras.saving.serialize_keras_object(layer)
                for layer in self.layers
            ],
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        config["layers"] = [
            keras.saving.deserialize_keras_object(layer)
            for layer in config["layers"]
        ]
        return cls(**config)
