"""Chapter 2: what the teacher answers."""

from keras_distill._folding import fold_batch_norm as fold_batch_norm
from keras_distill.teachers.record import record_teacher as record_teacher
from keras_distill.teachers.recording import RecordedTeacher as RecordedTeacher
