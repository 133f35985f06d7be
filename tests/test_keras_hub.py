"""KerasHub models and KerasCV layers, built without a download."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from common import cnn
from common import images

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import TeacherAgreement

pytestmark = pytest.mark.any_backend


def classifier(size=16, **kwargs):
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        use_pre_activation=False,
        image_shape=(size, size, 3),
    )
    converter = keras_hub.layers.ImageConverter(
        image_size=(size, size), scale=1 / 255.0
    )
    preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(
        image_converter=converter
    )
    return keras_hub.models.ImageClassifier(
        backbone=backbone, preprocessor=preprocessor, num_classes=5, **kwargs
    )


def test_a_hub_teacher_trains_a_student():
    x, y = images(8, 20, 3, dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal")
    distiller = Distiller(
        student=cnn(2, 20, 3),
        teacher=classifier(),
        augment=ConsistentAugment([flip]),
    )
    distiller.compile("adam", ClassicKD(), metrics=[TeacherAgreement()])
    history = distiller.fit(x, y, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_predictions_agree_with_the_students():
    x, y = images(8, 20, 3, dtype="uint8")
    student = classifier(12)
    distiller = Distiller(student=student, teacher=classifier())
    distiller.compile("adam", ClassicKD())
    distiller.fit(x, y, verbose=0)
    # KerasHub's `predict` resizes with TensorFlow, whatever the backend.
    np.testing.assert_allclose(
        distiller.predict(x, verbose=0),
        student.predict(x, verbose=0),
        atol=5e-3,
    )


def test_a_hub_classifier_that_ends_in_softmax():
    distiller = Distiller(
        student=cnn(2, 20, 3), teacher=classifier(activation="softmax")
    )
    with pytest.raises(
        ValueError, match="layer 'predictions' with activation='so"
    ):
        distiller.compile("adam", ClassicKD())


@pytest.mark.filterwarnings("ignore")
def test_keras_cv_layers_in_the_pipeline():
    import keras_cv

    x, y = images(16, 8, 3)
    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255), augmentations_per_image=1
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    dataset = dataset.map(lambda image, label: (layer(image), label))
    distiller = Distiller(student=cnn(2, 8, 3), teacher=cnn(4, 8, 3))
    distiller.compile("adam", ClassicKD())
    history = distiller.fit(dataset, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.filterwarnings("ignore")
def test_keras_cv_layers_can_not_be_consistent():
    import keras_cv

    for layer in (
        keras_cv.layers.RandomHue(0.5, (0, 255)),
        keras_cv.layers.MixUp(),
    ):
        with pytest.raises(ValueError, match="in the data pipeline"):
            ConsistentAugment([layer])
