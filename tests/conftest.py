"""One process runs the suite on one backend: `KERAS_BACKEND=jax pytest`."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# JAX compiles whatever runs, and a test runs it a few times only. So compiling
# fast matters most: without optimisation, and without the emitters for fusions,
# which take 40 % of the time. `make suite-jax` runs some tests as users
# compile, with `XLA_FLAGS=`.
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false",
    )
# Workers share the cores: with a thread for each core in every worker, PyTorch
# takes several times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

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


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "one_backend(name): does not depend on the backend, so it runs on one",
    )


def pytest_collection_modifyitems(config, items):
    """Run tests that do not depend on the backend on one backend only."""
    elsewhere = []
    for item in items:
        marker = item.get_closest_marker("one_backend")
        if marker and marker.args[0] != keras.backend.backend():
            elsewhere.append(item)
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(autouse=True)
def fresh_session():
    """Give every test the same names and the same random numbers."""
    # Without a collection of garbage, which takes half a second.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
