"""Knowledge distillation for Keras: small networks as good as large ones.

The public names, in reading order. Each package imports only from those before
it:

- `views`: what teacher and student are shown.
- `losses`: how far the student's outputs are from the teacher's.
- `teachers`: how any model or function runs as the teacher.
- `recording`: the teacher's outputs on disk.
- `metrics`: how close the student is to its teacher.
- `distiller`: the training with `fit()`.
- `resuming`: a training that goes on after it was killed.
- `compression`: a smaller network from a given one.
- `reports`: size, speed and accuracy side by side.
- `shrinking`: a network that fits the budget of a device.
"""

from keras_distill.views import ConsistentAugment as ConsistentAugment
from keras_distill.views import InceptionCrop as InceptionCrop
from keras_distill.views import MixUp as MixUp
from keras_distill.losses import FunctionMatching as FunctionMatching
from keras_distill.losses import ClassicKD as ClassicKD
from keras_distill.losses import DecoupledKD as DecoupledKD
from keras_distill.losses import DIST as DIST
from keras_distill.losses import BinaryKD as BinaryKD
from keras_distill.losses import ValueMatching as ValueMatching
from keras_distill.losses import Hint as Hint
from keras_distill.losses import AttentionTransfer as AttentionTransfer
from keras_distill.losses import SimilarityPreserving as SimilarityPreserving
from keras_distill.losses import RelationalKD as RelationalKD
from keras_distill.losses import DistillationLoss as DistillationLoss
from keras_distill.teachers import copy_layers as copy_layers
from keras_distill.teachers import map_vocabulary as map_vocabulary
from keras_distill.recording import record_teacher as record_teacher
from keras_distill.recording import RecordedTeacher as RecordedTeacher
from keras_distill.metrics import TeacherAgreement as TeacherAgreement
from keras_distill.metrics import TeacherDivergence as TeacherDivergence
from keras_distill.distiller import Distiller as Distiller
from keras_distill.resuming import Resume as Resume
from keras_distill import compression as compression
from keras_distill.reports import compare as compare
from keras_distill.reports import Comparison as Comparison
from keras_distill.shrinking import shrink as shrink
from keras_distill.shrinking import Shrunk as Shrunk

__version__ = "0.1.0"

# In the order of `sorted()`; ruff would put names in capitals first.
__all__ = [  # noqa: RUF022
    "AttentionTransfer",
    "BinaryKD",
    "ClassicKD",
    "Comparison",
    "ConsistentAugment",
    "DIST",
    "DecoupledKD",
    "DistillationLoss",
    "Distiller",
    "FunctionMatching",
    "Hint",
    "InceptionCrop",
    "MixUp",
    "RecordedTeacher",
    "RelationalKD",
    "Resume",
    "Shrunk",
    "SimilarityPreserving",
    "TeacherAgreement",
    "TeacherDivergence",
    "ValueMatching",
    "compare",
    "copy_layers",
    "map_vocabulary",
    "record_teacher",
    "shrink",
]
