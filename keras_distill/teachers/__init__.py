"""Teachers: running a model, a function or a torch module as the teacher.

`Distiller` and `record_teacher` accept any teacher and wrap it in a
`LiveTeacher` (`_live_teacher.py`).
"""

from keras_distill.teachers._copy_layers import copy_layers as copy_layers
from keras_distill.teachers._map_vocabulary import (
    map_vocabulary as map_vocabulary,
)
