"""Metrics: how close the student's outputs are to the teacher's."""

from keras_distill.metrics._teacher_agreement import (
    TeacherAgreement as TeacherAgreement,
)
from keras_distill.metrics._teacher_divergence import (
    TeacherDivergence as TeacherDivergence,
)
