"""Losses: how far the student's outputs are from the teacher's."""

from keras_distill.losses._function_matching import (
    FunctionMatching as FunctionMatching,
)
from keras_distill.losses._classic_kd import ClassicKD as ClassicKD
from keras_distill.losses._decoupled_kd import DecoupledKD as DecoupledKD
from keras_distill.losses._dist import DIST as DIST
from keras_distill.losses._binary_kd import BinaryKD as BinaryKD
from keras_distill.losses._value_matching import ValueMatching as ValueMatching
from keras_distill.losses._hint import Hint as Hint
from keras_distill.losses._attention_transfer import (
    AttentionTransfer as AttentionTransfer,
)
from keras_distill.losses._similarity_preserving import (
    SimilarityPreserving as SimilarityPreserving,
)
from keras_distill.losses._relational_kd import RelationalKD as RelationalKD
from keras_distill.losses._distillation_loss import (
    DistillationLoss as DistillationLoss,
)
