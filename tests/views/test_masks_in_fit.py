"""Masks with a view in `fit()`: a network without errors keeps none."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill

pytestmark = pytest.mark.any_backend

CLASSES = 5
VIEWS = {
    "crop": lambda: layers.RandomCrop(8, 8),
    "cut": lambda: layers.CutMix(),
    "flip": lambda: layers.RandomFlip(),
    "rotate": lambda: layers.RandomRotation(0.2, interpolation="nearest"),
    "translate": lambda: layers.RandomTranslation(
        0.3, 0.3, interpolation="nearest"
    ),
}


class Reads(keras.Model):
    """Reads each pixel's class from its colour."""

    def __init__(self):
        super().__init__()
        self.bias = self.add_weight(shape=(), initializer="zeros")

    def call(self, images):
        classes = keras.ops.cast(keras.ops.round(images[..., 0]), "int32")
        return 20.0 * keras.ops.one_hot(classes, CLASSES) + self.bias


@pytest.mark.parametrize("name", VIEWS)
def test_a_network_with_every_pixel_right(name):
    masks = np.random.default_rng(0).integers(0, CLASSES, (8, 16, 16))
    images = masks[..., None].astype("float32")
    student, teacher = Reads(), Reads()
    student(images), teacher(images)
    augment = keras_distill.ConsistentAugment(VIEWS[name](), seed=2)
    distiller = keras_distill.Distiller(
        student=student, teacher=teacher, augment=augment
    )
    distiller.compile(
        keras.optimizers.SGD(0.0),
        keras_distill.ClassicKD(0.5),
        metrics=[] if augment.mixes_labels else ["accuracy"],
    )
    logs = distiller.fit(
        images, masks, sample_weight=1.0 + masks, verbose=0
    ).history
    assert logs["label_loss"][0] < 1e-6
    assert logs.get("accuracy", [1.0]) == [1.0]
