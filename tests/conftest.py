"""One process runs the suite on one backend: `KERAS_BACKEND=jax pytest`."""

import collections
import gc
import os
import zlib

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
for _profile, _examples in (("all", 42), ("share", 14)):
    hypothesis.settings.register_profile(
        _profile, deadline=None, derandomize=True, max_examples=_examples
    )

# What was imported stays: no collection of garbage need look through it.
gc.freeze()


BACKENDS = ("tensorflow", "jax", "torch")
COLLECTED = pytest.StashKey()
# These two compile, which takes five times as long as what PyTorch does.
COMPILING = ("tensorflow", "jax")


def pytest_addoption(parser):
    parser.addoption(
        "--share-parameters",
        action="store_true",
        help="leave tests that any backend can run to PyTorch, let each other "
        "test without parameters run on PyTorch and one more backend, and "
        "divide parameters and generated examples among the three",
    )


def pytest_configure(config):
    share = config.getoption("share_parameters")
    hypothesis.settings.load_profile("share" if share else "all")
    for marker in (
        "one_backend(name): runs on this backend only",
        "any_backend: what it tests is the same on each backend, so with "
        "--share-parameters it runs on PyTorch only",
        "every_backend: runs on all three with --share-parameters too, with "
        "all parameters",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config, items):
    """Leave out what runs on another backend."""
    config.stash[COLLECTED] = list(items)
    share = config.getoption("share_parameters")
    here = selected(items, share)
    if share:
        _generate_own_examples(items)
    elsewhere = [item for item in items if id(item) not in here]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if id(item) in here]


def selected(items, share):
    """Return ids of the items that run on this backend."""
    here = {id(item) for item in items if _runs_here(item)}
    return here & _shares(items) if share else here


def _runs_here(item):
    marker = item.get_closest_marker("one_backend")
    return marker is None or marker.args[0] == keras.backend.backend()


def _shares(items):
    """Return ids of the items that are the share of this backend.

    All three backends together run all of them. Each function with parameters
    runs on every backend, with every third of them.
    """
    backend = keras.backend.backend()
    number = BACKENDS.index(backend)
    groups = collections.defaultdict(list)
    own = set(map(id, items))
    for item in items:
        if any(map(item.get_closest_marker, ("one_backend", "every_backend"))):
            continue
        if "[" in item.nodeid and not item.get_closest_marker("any_backend"):
            groups[item.nodeid.partition("[")[0]].append(item)
        elif backend not in _backends_of(item):
            own.remove(id(item))
    for group in groups.values():
        here = group[number :: len(BACKENDS)] or [group[number % len(group)]]
        own -= set(map(id, group)) - set(map(id, here))
    return own


def _backends_of(item):
    """Return the backends that run a test whose parameters are not divided."""
    if item.get_closest_marker("any_backend"):
        return ("torch",)
    # By name: the items before it differ between the backends.
    turn = zlib.crc32(item.nodeid.encode()) % len(COMPILING)
    return ("torch", COMPILING[turn])


def _generate_own_examples(items):
    """Let each backend generate other examples, the same in every run."""
    number = BACKENDS.index(keras.backend.backend())
    for item in items:
        if hypothesis.is_hypothesis_test(item.obj):
            hypothesis.seed(number)(item.obj)


@pytest.fixture(autouse=True)
def fresh_session():
    """Give every test the same names and the same random numbers."""
    # Without a collection of garbage, which takes half a second.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
