"""Runs that survive: the state of a `fit()` on disk, and back.

`Resume` is the callback. `_state_folders.py` writes folders that are complete
or absent, `_run_state.py` collects what a run consists of, and
`_data_position.py` brings the data back to where it was.
"""

from keras_distill.resuming._resume import Resume as Resume
