"""Chapter 3: how far the student's answer is from the teacher's."""

from keras_distill.losses.attention_transfer import (
    AttentionTransfer as AttentionTransfer,
)
from keras_distill.losses.binary_kd import BinaryKD as BinaryKD
from keras_distill.losses.classic_kd import ClassicKD as ClassicKD
from keras_distill.losses.decoupled_kd import DecoupledKD as DecoupledKD
from keras_distill.losses.dist import DIST as DIST
from keras_distill.losses.distillation_loss import (
    DistillationLoss as DistillationLoss,
)
from keras_distill.losses.function_matching import (
    FunctionMatching as FunctionMatching,
)
from keras_distill.losses.hint import Hint as Hint
from keras_distill.losses.relational_kd import RelationalKD as RelationalKD
from keras_distill.losses.similarity_preserving import (
    SimilarityPreserving as SimilarityPreserving,
)
from keras_distill.losses.value_matching import ValueMatching as ValueMatching
