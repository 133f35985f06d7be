"""Chapter 1: what teacher and student look at."""

from keras_distill.views.consistent_augment import (
    ConsistentAugment as ConsistentAugment,
)
from keras_distill.views.inception_crop import InceptionCrop as InceptionCrop
from keras_distill.views.mix_up import MixUp as MixUp
