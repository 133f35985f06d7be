"""Distiller: the model that trains a student with plain `fit()`."""

from keras_distill.distiller._distiller import Distiller as Distiller
