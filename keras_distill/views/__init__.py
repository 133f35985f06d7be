"""Views: the augmented images that teacher and student get.

A view is a batch after random augmentation. It is drawn once per step, and both
models get the same view.
"""

from keras_distill.views._consistent_augment import (
    ConsistentAugment as ConsistentAugment,
)
from keras_distill.views._inception_crop import InceptionCrop as InceptionCrop
from keras_distill.views._mix_up import MixUp as MixUp
