"""Views: what teacher and student are shown.

A view is a batch after random augmentation. It is drawn once, and both models
get the same one.
"""

from keras_distill.views._consistent_augment import (
    ConsistentAugment as ConsistentAugment,
)
from keras_distill.views._inception_crop import InceptionCrop as InceptionCrop
from keras_distill.views._mix_up import MixUp as MixUp
