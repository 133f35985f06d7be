"""The views of function matching: inside the step, and in tf.data."""

import keras
import numpy as np
from keras import ops

from benchmarks import loops
from benchmarks import models
from benchmarks import setups
from benchmarks.timing import compare
from keras_distill import ConsistentAugment
from keras_distill import InceptionCrop
from keras_distill import MixUp


def views(smoke):
    """Two sizes, against tf.data on the same cores.

    Ours draws, crops, flips and mixes a batch at once, in a compiled function.
    tf.data crops and flips image by image, in parallel, and mixes batches; it
    resizes with the same antialiased bilinear filter.
    """
    rows = []
    sizes = [(8, 8, 4)] if smoke else [(32, 32, 128), (128, 96, 32)]
    for before, after, batch in sizes:
        images = np.random.default_rng(0).integers(
            0, 256, (4 * batch, before, before, 3), dtype="uint8"
        )
        measured = compare(
            lambda after=after, batch=batch, images=images: _ours(
                images, after, batch
            ),
            lambda after=after, batch=batch, images=images: _tf_data(
                images, after, batch
            ),
            instances=2,
            seconds=3.0,
            smoke=smoke,
        )
        speeds = [
            round(1000 * batch / time) for time in measured["milliseconds"]
        ]
        rows.append(
            {
                "title": f"view / tf.data, {before} px to {after} px",
                "goal": 1.0,
                "images_per_second": speeds,
                **measured,
            }
        )
    return [*rows, _share(smoke)]


def _share(smoke):
    """The time of the view alone against the step that draws it."""
    pair = models.pairs(smoke)["cnn"]
    batches = setups.images(pair)
    images = np.concatenate([ops.convert_to_numpy(x) for x, _ in batches])
    measured = compare(
        lambda: _ours(images, pair.size, pair.batch),
        lambda: setups.distiller(pair, augment=_chain(pair.size)),
        instances=2,
        seconds=3.0,
        smoke=smoke,
    )
    return {"title": "view / step that draws it, CNN pair", **measured}


def _chain(size):
    return ConsistentAugment(
        [
            InceptionCrop(size, size),
            keras.layers.RandomFlip("horizontal"),
            MixUp(),
        ],
        seed=0,
    )


def _ours(images, size, batch):
    augment = _chain(size)
    view = loops.compiled(
        lambda x: augment(x, training=True), writes=augment.variables
    )
    batches = images.reshape(-1, batch, *images.shape[1:])
    return loops.repeated(view, [ops.convert_to_tensor(b) for b in batches])


def _tf_data(images, size, batch):
    import tensorflow as tf

    def crop(image):
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.05, 1.0),
            max_attempts=10,
        )
        image = tf.slice(image, begin, extent)
        image = tf.image.resize(image, (size, size), antialias=True)
        return tf.image.random_flip_left_right(image)

    def mix(images):
        weight = tf.random.uniform((batch, 1, 1, 1))
        partner = tf.gather(images, tf.random.shuffle(tf.range(batch)))
        return weight * images + (1.0 - weight) * partner

    dataset = tf.data.Dataset.from_tensor_slices(images).repeat()
    dataset = dataset.map(crop, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch, drop_remainder=True)
    dataset = dataset.map(mix, num_parallel_calls=tf.data.AUTOTUNE)
    # It must not work ahead while the other side is timed.
    iterator = iter(dataset)

    def run(steps):
        for _ in range(steps):
            next(iterator)

    return run
