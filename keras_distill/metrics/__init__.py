"""Metrics: how close the student is to its teacher."""

from keras_distill.metrics._teacher_metrics import (
    TeacherAgreement as TeacherAgreement,
)
from keras_distill.metrics._teacher_metrics import (
    TeacherDivergence as TeacherDivergence,
)
