"""ConsistentAugment: one random view of a batch, for everyone who looks at it.

The Distiller draws the view outside both models, so teacher and student get the
same pixels by construction. What is left to this layer is to make everything
else agree with those pixels: mixed labels, sample weights, and a second
rendering of the same view at the teacher's resolution.
"""

import keras
from keras import ops
from keras import tree

from keras_distill.views import consistency


@keras.saving.register_keras_serializable(package="keras_distill")
class ConsistentAugment(keras.layers.Layer):
    """Chains augmentations, draws each once per batch, applies it to all.

    Takes the layers of this package and Keras image layers that split drawing
    (`get_random_transformation`) from applying (`transform_images`), such as
    `RandomFlip`, `RandomContrast`, `RandomErasing` or `CutMix`. A layer that
    can't be consistent is refused by name; use it in the data pipeline instead,
    where both models see its result anyway.

    Args:
        layers: list of layers, applied in order.
        seed: int or `None`. If given, one generator draws for all layers and
            their own seeds are not used; if `None`, each layer draws with its
            own generator.
        **kwargs: `name` and `dtype`, as for every Keras layer.

    Call arguments:
        data: batch of images, or a dict with `"images"` and optionally
            `"labels"` (and `"sample_weight"`), which follow where layers mix
            images.
        training: bool. Whether to augment; otherwise the data passes unchanged.

    Input shape:
        What the first layer takes: `(batch, height, width, channels)`, or the
        channels first.

    Output shape:
        What the last layer returns. Behind an `InceptionCrop` with
        `teacher_size` the images are `{"student": ..., "teacher": ...}`.

    Raises:
        TypeError: if `layers` holds something that is not a Keras layer.
        ValueError: if a layer can't be consistent, or data formats differ.

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
        consistency.check_layers(self.layers)
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
        """Whether a layer of the chain blends different images."""
        return any(
            isinstance(layer, consistency.MIXING) for layer in self.layers
        )

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
            one entry per layer, for `transform_labels`.
        """
        view = tree.map_structure(ops.convert_to_tensor, images)
        consistency.check_batches(view, self.layers, self.name)
        transformations = []
        for index, layer in enumerate(self.layers):
            transformation = layer.get_random_transformation(
                tree.flatten(view)[0], training=True, seed=self.seed_generator
            )
            if recorded is not None:
                transformation = _replaced(transformation, index, recorded)

            def apply(images, layer=layer, transformation=transformation):
                # On PyTorch, layers that rotate write into what was drawn.
                return layer.transform_images(
                    images, _copy(transformation), training=True
                )

            view = tree.map_structure(apply, view)
            transformations.append(transformation)
        return view, transformations

    def transform_labels(self, labels, transformations):
        """Give labels (or any values per image) the drawn transformations.

        Args:
            labels: a structure of float tensors `(batch, ...)`.
            transformations: what `draw` returned.
        """
        for layer, transformation in zip(self.layers, transformations):
            if isinstance(layer, consistency.MIXING):
                labels = tree.map_structure(
                    lambda values, layer=layer, drawn=transformation: (
                        layer.transform_labels(values, drawn, training=True)
                    ),
                    labels,
                )
        return labels

    def view_spec(self, images):
        """Return symbolic tensors like the view of `images`.

        Args:
            images: batch of images, or a dict or tuple of them; only shapes
                are read.
        """

        def spec(shape):
            return keras.KerasTensor(tuple(shape), dtype=self.compute_dtype)

        consistency.check_batches(images, self.layers, self.name)

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
        for key in ("labels", "sample_weight"):
            if key in data:
                augmented[key] = self.transform_labels(
                    data[key], transformations
                )
        return augmented

    def compute_output_shape(self, input_shape):
        shapes = input_shape
        for layer in self.layers:
            if isinstance(shapes, dict):
                shapes = {
                    key: _shape_after(layer, shape)
                    for key, shape in shapes.items()
                }
            else:
                shapes = _shape_after(layer, tuple(shapes))
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


def _shape_after(layer, shape):
    try:
        return layer.compute_output_shape(shape)
    except NotImplementedError:
        # Keras's answer for a layer that does not say; most keep the shape.
        return shape


def _copy(transformation):
    return tree.map_structure(
        lambda leaf: ops.copy(leaf) if hasattr(leaf, "dtype") else leaf,
        transformation,
    )


def tensors_of(transformations):
    """Return the tensors in a drawing by name, `"layer/key"`."""
    return {
        _name(index, path): leaf
        for index, transformation in enumerate(transformations)
        for path, leaf in tree.flatten_with_path(transformation)
        if hasattr(leaf, "dtype")
    }


def _replaced(transformation, index, recorded):
    """Return a transformation with the recorded tensors in their places.

    What is not recorded stays: it tells of shapes, and may be a tensor where
    the batch size is not known beforehand.
    """
    leaves = [
        ops.cast(recorded[_name(index, path)], leaf.dtype)
        if _name(index, path) in recorded
        else leaf
        for path, leaf in tree.flatten_with_path(transformation)
    ]
    return tree.pack_sequence_as(transformation, leaves)


def _name(index, path):
    return "/".join(map(str, (index, *path)))


def view_of_each(view):
    """Return `(student's view, teacher's view)` of what a chain returned."""
    if isinstance(view, dict) and set(view) == {"student", "teacher"}:
        return view["student"], view["teacher"]
    return view, view


def mixable(values, outputs=None):
    """Return labels or weights in a form that can be blended.

    Args:
        values: a structure of labels or weights.
        outputs: if given, the teacher's outputs `(batch, classes)` of the same
            structure, which tell how many classes there are: class indices
            become one-hot.
    """

    def blendable(value, output=None):
        value = ops.convert_to_tensor(value)
        is_index = not keras.backend.is_float_dtype(value.dtype)
        is_class = output is not None and output.shape[-1] > 1
        if is_index and is_class and value.shape != output.shape:
            value = ops.reshape(value, ops.shape(output)[:-1])
            return ops.one_hot(ops.cast(value, "int32"), output.shape[-1])
        return ops.cast(value, "float32")

    if outputs is None:
        return tree.map_structure(blendable, values)
    values_flat, outputs_flat = tree.flatten(values), tree.flatten(outputs)
    if len(values_flat) != len(outputs_flat):
        raise ValueError(
            "Where images are mixed, labels must have the structure of the "
            f"outputs. Received: {len(values_flat)} labels for "
            f"{len(outputs_flat)} outputs."
        )
    flat = [blendable(v, o) for v, o in zip(values_flat, outputs_flat)]
    return tree.pack_sequence_as(values, flat)
