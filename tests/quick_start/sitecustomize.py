"""Python imports this first in the programs that tests start.

Keras imports these packages if they are installed, which takes half of its own
time. The programs need none of them.
"""

import os
import sys

names = ["matplotlib", "sklearn"]
if os.environ.get("KERAS_BACKEND") != "jax":
    names.append("jax")
sys.modules |= dict.fromkeys(names)
