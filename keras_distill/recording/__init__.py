"""Recording: the teacher's outputs on disk, for offline distillation.

To write a recording:

- `_record_teacher.py`: `record_teacher`; checks its arguments and sets up:
- `_sources.py`: the batches of the data, and which samples are in them.
- `_recording_step.py`: draws a view of a batch and runs the teacher on it.
- `_writer.py`: loops over epochs and batches, continues a stopped recording.
- `_manifest.py`: what the manifest says of teacher, data, view and rows.
- `_storage.py`: what is written: the files, and the fields of a row.
- `_folders.py`: where it is written: a folder, or a storage of fsspec.
- `_parts.py`: several processes write parts, which are read as one recording.
- `_manifest_check.py`: whether a manifest that was read is one.

To train from a recording:

- `_recorded_teacher.py`: `RecordedTeacher`; stands for the teacher in a
  `Distiller`, reads rows and checks that they fit.
- `_replay.py`: the dataset that joins the data of `fit()` with recorded rows.
- `_recorded_batch.py`: how recorded rows travel with the inputs of a batch.
"""

from keras_distill.recording._record_teacher import (
    record_teacher as record_teacher,
)
from keras_distill.recording._recorded_teacher import (
    RecordedTeacher as RecordedTeacher,
)
