"""Segmentation: which pixel belongs to which digit?

Canvases show two digits. Each pixel has a class: background or one of ten
digits. For the student, only 100 of 1,000 masks are left. `ClassicKD` combines
masks and teacher for each pixel; the masks follow the random crops.

    python examples/segmentation.py

Takes half a minute on two CPU cores.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import InceptionCrop
from keras_distill import compare

# ## Draw canvases and masks with digits from scikit-learn
keras.utils.set_random_seed(0)
digits, kinds = load_digits(return_X_y=True)
digits = (digits / 16).astype("float32").reshape(-1, 8, 8)


def canvases(count, first, last, seed):
    """Draw digits `first` to `last` of the data set: left and right."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, 16, 24, 1), "float32")
    masks = np.zeros((count, 16, 24), "int32")
    for image, mask in zip(images, masks):
        for side in (0, 12):
            chosen = generator.integers(first, last)
            top, left = generator.integers(0, [9, 5])
            place = np.s_[top : top + 8, side + left : side + left + 8]
            image[place][..., 0] = digits[chosen]
            mask[place][digits[chosen] > 0.3] = 1 + kinds[chosen]
    return images, masks


x, masks = canvases(1000, 0, 1297, seed=0)
x_test, masks_test = canvases(300, 1297, 1797, seed=1)


# ## Train the teacher
def segmenter(width):
    conv = {"padding": "same", "activation": "relu"}
    inputs = keras.Input((16, 24, 1))
    x = layers.Conv2D(width, 3, **conv)(inputs)
    y = layers.Conv2D(2 * width, 3, strides=2, **conv)(x)
    y = layers.Conv2D(2 * width, 5, **conv)(y)
    x = layers.Concatenate()([x, layers.UpSampling2D()(y)])
    return keras.Model(inputs, layers.Conv2D(11, 3, padding="same")(x))


teacher, alone, student = segmenter(24), segmenter(8), segmenter(8)
loss = keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, ignore_class=255
)
teacher.compile(keras.optimizers.Adam(2e-3), loss)
teacher.fit(x, masks, epochs=20, verbose=0)

# ## Train a student with 100 masks
masks[100:] = 255  # No class is known for these pixels.
alone.compile(keras.optimizers.Adam(4e-3), loss)
alone.fit(x[:100], masks[:100], epochs=150, verbose=0)

# ## Distil the other student from all canvases
crop = InceptionCrop(16, 24, area_range=(0.8, 1.0))
distiller = Distiller(
    student=student, teacher=teacher, augment=ConsistentAugment([crop])
)
rate = keras.optimizers.schedules.CosineDecay(1e-2, 30 * 32)
distiller.compile(
    keras.optimizers.Adam(rate),
    ClassicKD(alpha=0.9, temperature=2.0, label_loss=loss),
)
distiller.fit(x, masks, epochs=30, verbose=2)

# ## Compare
models = {"teacher": teacher, "100 masks": alone, "distilled": student}
iou = keras.metrics.MeanIoU(num_classes=11, sparse_y_pred=False)
metrics = {"pixel accuracy": "sparse_categorical_accuracy", "mean IoU": iou}
print(compare(models, (x_test, masks_test), litert=(), metrics=metrics))
student.save("student.keras")
