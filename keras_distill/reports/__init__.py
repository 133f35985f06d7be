"""Reports: comparing models by size, speed and accuracy."""

from keras_distill.reports._compare import compare as compare
from keras_distill.reports._comparison import Comparison as Comparison
