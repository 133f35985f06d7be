"""ConsistentAugment: one random view of a batch, for everyone who looks at it.

The Distiller draws the view outside both models, so teacher and student get the
same pixels by construction. What is left to this layer is to make everything
else agree with those pixels: labels, masks and weights (`_follow.py`), and a
second rendering of the same view at the teacher's resolution.
"""

import keras
from keras import ops
from keras import tree

from keras_distill.views import _checks
from keras_distill.views import _follow
from keras_distill.views import _layer_kinds
from keras_distill.views import _transformations
from keras_distill.views._transformations import tensors_of as tensors_of


@keras.saving.register_keras_serializable(package="keras_distill")
class ConsistentAugment(keras.layers.Layer):
    """Chains augmentations, draws each once per batch, applies it to all.

    Takes the layers of this package and Keras image layers that split drawing
    (`get_random_transformation`) from applying (`transform_images`), such as
    `RandomFlip`, `RandomContrast`, `RandomErasing` or `CutMix`. A layer that
    can't be consistent is refused by name; use it in the data pipeline instead,
    where both models see its result anyway.

    Labels, masks and weights follow the view, see `follow`; what can't follow
    is refused. A layer of your own that changes labels says so by the class
    attribute `mixes_labels = True`.

    Args:
        layers: list of layers, applied in order.
        seed: int or `None`. If given, one generator draws for all layers and
            their own seeds are not used; if `None`, each layer draws with its
            own generator.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        data: batch of images, or a dict with `"images"` and optionally
            `"labels"`, `"sample_weight"` and `"segmentation_masks"`, which
            follow as `follow` says. Where layers blend images, labels and
            masks must be floats (one-hot).
        training: bool. Whether to augment; otherwise the data passes unchanged.

    Input shape:
        What the first layer takes: `(batch, height, width, channels)`, or the
        channels first.

    Output shape:
        What the last layer returns. Behind an `InceptionCrop` with
        `teacher_size` the images are `{"student": ..., "teacher": ...}`.

    Raises:
        TypeError: if `layers` holds something that is not a Keras layer.
        ValueError: if a layer can't be consistent, does not say what it does
            to labels, or data formats differ.

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

    def __init__(self, layers, seed=None, **kwargs):
        # Each layer casts for itself.
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
    def mixes_labels(self):
        """Whether a layer of the chain blends or pastes different images."""
        return any(map(_layer_kinds.mixes, self.layers))

    @property
    def moves_pixels(self):
        """Whether a layer of the chain moves pixels, or may.

        Keras's layers that change colours alone, and those that mix images
        pixel by pixel, don't; of a layer of your own it can't be known.
        """
        return any(map(_layer_kinds.moves_pixels, self.layers))

    def draw(self, images, recorded=None):
        """Draw a view of `images`; return it and the transformations drawn.

        Drawing and applying alternate along the chain, since a layer draws for
        the size that the layer before it returns.

        Args:
            images: batch of images, or a dict or tuple of such batches, to
                which the same transformations are applied.
            recorded: dict of what `tensors_of` returned for an earlier
                drawing on images of this shape, to get that view again.

        Returns:
            `(view, transformations)`: the images as augmented, and a list with
            one entry per layer, for `follow`.
        """
        view = tree.map_structure(ops.convert_to_tensor, images)
        _checks.check_batches(view, self.layers, self.name)
        transformations = []
        for index, layer in enumerate(self.layers):
            transformation = layer.get_random_transformation(
                tree.flatten(view)[0], training=True, seed=self.seed_generator
            )
            if recorded is not None:
                transformation = _transformations.replaced(
                    transformation, index, recorded
                )

            def apply(images, layer=layer, transformation=transformation):
                return _transformations.apply(layer, images, transformation)

            view = tree.map_structure(apply, view)
            transformations.append(transformation)
        return view, transformations

    def follow(self, values, transformations, images, num_classes=None):
        """Return labels, masks or weights as they belong to the drawn view.

        Values per sample (rank 1 and 2) change where layers mix images: `MixUp`
        blends them with its weights, `keras.layers.CutMix` with the share of
        its rectangle, a layer of your own in its `transform_labels`.

        Maps (rank 3 and 4, with the height and width of the images) follow
        every layer, with nearest neighbour: dtype and values are kept. `MixUp`
        blends them pixel by pixel, as floats; `CutMix` pastes them. Layers that
        erase or change colours leave them. Maps at 1/2, 1/4, ... of the images'
        height and width follow `InceptionCrop`, `MixUp`, and Keras's crops,
        `Resizing`, `RandomFlip` and `MixUp`.

        Where nothing moves or mixes them, values are returned as they are.

        Args:
            values: one tensor `(batch, ...)`.
            transformations: what `draw` returned.
            images: the images that `draw` got; only static shapes are read.
            num_classes: int if `values` are class indices, `(batch,)`,
                `(batch, 1)`, `(batch, height, width)` or with one channel, of
                any dtype: where layers mix images they become one-hot rows,
                behind the other axes or in the place of the one channel. An
                index out of range (a void label) gives a row of zeros. `None`
                for all other values.

        Returns:
            A tensor; `values` itself where it does not change.

        Raises:
            ValueError: if values can't follow: boxes and sequences, where
                pixels move or mix; maps at another resolution behind layers
                that draw for that of the images; pixels from outside the image
                (`fill_mode="constant"`, `RandomPerspective`, padding), which
                have no label; layers of your own without
                `transform_segmentation_masks`; maps made flat, `(batch, height
                * width)`.

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

    def view_spec(self, images):
        """Return symbolic tensors like the view of `images`.

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

    def call(self, data, training=True):
        if not training:
            return data
        if not (isinstance(data, dict) and "images" in data):
            return self.draw(data)[0]
        images, transformations = self.draw(data["images"])
        augmented = {**data, "images": images}
        for key in ("labels", "segmentation_masks", "sample_weight"):
            if key not in data:
                continue
            # Nobody says how many classes there are.
            classes = None if key == "sample_weight" else _follow.UNKNOWN

            def follow(values, num_classes=classes):
                return self.follow(
                    values, transformations, data["images"], num_classes
                )

            augmented[key] = tree.map_structure(follow, data[key])
        return augmented

    def compute_output_shape(self, input_shape):
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

    def get_config(self):
        return {
            **super().get_config(),
            "layers": [
                keras.saving.serialize_keras_object(layer)
                for layer in self.layers
            ],
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layers"] = [
            keras.saving.deserialize_keras_object(layer)
            for layer in config["layers"]
        ]
        return cls(**config)


def view_of_each(view, inputs):
    """Return `(student's view, teacher's view)` of an augmented batch.

    Args:
        view: what the augmentation returned for `inputs`.
        inputs: the batch before. Inputs that have the names "student" and
            "teacher" themselves are the same for both models.
    """
    if _has_both(view) and not _has_both(inputs):
        return view["student"], view["teacher"]
    return view, view


def _has_both(batch):
    return isinstance(batch, dict) and set(batch) == {"student", "teacher"}
