"""One process runs the suite on one backend: `KERAS_BACKEND=jax pytest`."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What a test compiles runs a few times: compiling it well takes longer.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Imported after TensorFlow, PyTorch crashes the process.
import torch  # noqa: F401, I001
import hypothesis
import keras
import pytest

# The first example of a test compiles, which takes longer than any deadline.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("suite")

# What was imported stays: no collection of garbage need look through it.
gc.freeze()


@pytest.fixture(autouse=True)
def fresh_session():
    """Give every test the same names and the same random numbers."""
    # Without a collection of garbage, which takes half a second.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
