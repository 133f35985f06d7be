"""A network that fits the budget of a device, in one call.

`_shrink.py` is the way from the arguments to the result. `_budget.py` measures
a model in the file that it becomes, `_candidates.py` has the ways to a smaller
network, `_teaching.py` trains, and `_run.py` keeps on disk what is done.
"""

from keras_distill.shrinking._shrink import shrink as shrink
from keras_distill.shrinking._shrunk import Shrunk as Shrunk
