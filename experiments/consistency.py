"""Why teacher and student should look at the same view.

A small CNN matches a ResNet-20 on 5,000 images of CIFAR-10, in four settings
that differ in what the two look at: the teacher at the whole image and the
student at a crop of it; both at different crops; both at the same crop; both
at the same crop, mixed with another.

    python experiments/consistency.py --data FOLDER --out consistency.json

Writes the divergence from the teacher on the training views and on 2,000 test
images, and the student's test accuracy, after each epoch.

Source: Beyer et al. 2022, https://arxiv.org/abs/2106.05237, figure 3.
"""

import argparse
import pathlib

import cifar10
import experiment
import experiment_results as results
import keras
import results_schema
from keras import layers

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import TeacherDivergence

IMAGES, TEST_IMAGES = 5000, 2000
SETTINGS = (
    "fixed teacher",
    "independent views",
    "same view",
    "same view, MixUp",
)


@keras.saving.register_keras_serializable(package="experiments")
class TwoViews(layers.Layer):
    """Gives student and teacher different views of one image.

    A layer that returns a dict with these two names decides who sees what.

    Args:
        crop_for_teacher: whether the teacher gets another crop.
    """

    def __init__(self, crop_for_teacher, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.crop_for_teacher = crop_for_teacher
        self.crop = crop()

    def get_random_transformation(self, images, training=True, seed=None):
        return {
            model: self.crop.get_random_transformation(images, training, seed)
            for model in ("student", "teacher")
        }

    def transform_images(self, images, transformation, training=True):
        views = {
            model: self.crop.transform_images(images, drawn, training)
            for model, drawn in transformation.items()
        }
        if not self.crop_for_teacher:
            views["teacher"] = keras.ops.cast(images, "float32")
        return views

    def compute_output_shape(self, input_shape):
        return {"student": input_shape, "teacher": input_shape}

    def get_config(self):
        return {
            **super().get_config(),
            "crop_for_teacher": self.crop_for_teacher,
        }


def crop():
    return InceptionCrop(32, 32, area_range=(0.25, 1.0))


def views(setting):
    chains = {
        "fixed teacher": [TwoViews(crop_for_teacher=False)],
        "independent views": [TwoViews(crop_for_teacher=True)],
        "same view": [crop()],
        "same view, MixUp": [crop(), MixUp()],
    }
    return ConsistentAugment(chains[setting], seed=0)


def run(setting, teacher, x, scored, options):
    """Return the curves of one setting."""
    keras.utils.set_random_seed(0)
    distiller = Distiller(
        student=cifar10.cnn((16, 32), "student"),
        teacher=teacher,
        augment=views(setting),
    )
    distiller.compile(
        experiment.optimizer(options, len(x)),
        loss=FunctionMatching(),
        metrics=["accuracy", TeacherDivergence()],
    )
    history = distiller.fit(
        x,
        batch_size=options.batch_size,
        epochs=options.epochs,
        validation_data=scored,
        verbose=2,
    ).history
    return {
        "train_divergence": history["teacher_divergence"],
        "test_divergence": history["val_teacher_divergence"],
        "test_accuracy": history["val_accuracy"],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--teacher-dtype", default="float32")
    parser.add_argument("--out", type=pathlib.Path, default="consistency.json")
    parser.add_argument("--smoke", action="store_true", help="a few batches")
    options = parser.parse_args()
    (x, _), (x_test, y_test) = cifar10.load(options)
    x, scored = x[:IMAGES], (x_test[:TEST_IMAGES], y_test[:TEST_IMAGES])
    if options.smoke:
        options.epochs = 1
        teacher = cifar10.cnn((16, 32), "teacher")
    else:
        teacher = experiment.in_policy(
            options.teacher_dtype, lambda: cifar10.pretrained(20, options.data)
        )
    rows = []
    for setting in SETTINGS:
        curves = run(setting, teacher, x, scored, options)
        row = results.row_of(setting, options, curves, views=setting)
        rows.append(row)
        print(
            f"{setting:20}",
            *(f"{key} {values[-1]:.3f}" for key, values in curves.items()),
        )
    results_schema.write(rows, options.out)


if __name__ == "__main__":
    main()
