"""One process runs the suite on one backend: `KERAS_BACKEND=jax pytest`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

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


@pytest.fixture(autouse=True)
def fresh_session():
    """Give every test the same names and the same random numbers."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
