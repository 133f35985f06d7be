"""Chapter 6: what was won."""

from keras_distill.reports.comparison import Comparison as Comparison
from keras_distill.reports.comparison import compare as compare
