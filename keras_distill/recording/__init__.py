"""Recording: the teacher's outputs on disk, for offline distillation."""

from keras_distill.recording._record_teacher import (
    record_teacher as record_teacher,
)
from keras_distill.recording._recorded_teacher import (
    RecordedTeacher as RecordedTeacher,
)
