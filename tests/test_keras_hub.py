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


def test_a_language_model_in_chunks_of_tokens():
    def gpt(width, seed):
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=50,
            num_layers=1,
            num_heads=2,
            hidden_dim=width,
            intermediate_dim=2 * width,
            max_sequence_length=12,
            dropout=0.0,
        )
        return keras_hub.models.GPT2CausalLM(backbone)

    tokens = np.random.default_rng(0).integers(0, 50, (4, 13)).astype("int32")
    padding = (np.arange(12) < [[12], [9], [12], [5]]).astype("int32")
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": padding}
    students = []
    for chunk in (None, 7):
        distiller = Distiller(
            student=gpt(8, 1), teacher=gpt(16, 2), tokens_per_chunk=chunk
        )
        loss = ClassicKD(0.5, 2.0, reduction="mean_with_sample_weight")
        distiller.compile(keras.optimizers.SGD(0.5), loss)
        distiller.fit(
            inputs,
            tokens[:, 1:],
            sample_weight=padding.astype("float32"),
            verbose=0,
        )
        students.append(distiller.student.get_weights())
    for one, other in zip(*students):
        np.testing.assert_allclose(one, other, atol=1e-6)


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
