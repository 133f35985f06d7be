"""Chapter 2: what the teacher answers."""

from keras_distill.teachers.folding import fold_batch_norm as fold_batch_norm
