# Two commands do all the set-up themselves, from a bare checkout with Python
# 3.11, git and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `uv` installs with a quarter of the CPU time of pip, from the same index.
UV_INSTALL := $(VENV)/bin/uv pip install -q -c constraints.txt
export TF_CPP_MIN_LOG_LEVEL = 3
export MPLBACKEND = Agg
# Where bytecode is not kept, every process compiles Keras and its backend from
# source again, which takes 6 to 13 seconds, and the suite starts many.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test checks suite suite-complete suite-jax lint docs wheel bench clean \
	notebooks nightly fuzz test-oldest test-newest

demo: $(VENV)/demo-installed
	$(BIN)/python experiments/digits.py

# The checks use one core most of the time, so they run beside the suite.
test: $(VENV)/dev-installed
	$(MAKE) -j 2 --output-sync=target checks suite
	@echo "All checks passed."

checks: lint docs wheel

# One backend after the other: each uses both cores.
suite: $(VENV)/dev-installed
	$(MAKE) -j 1 suite-tensorflow suite-jax suite-torch

PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

# The backends share the tests, as CONTRIBUTING.md describes. `make suite-complete`
# runs all of them on all backends.
SHARE := --share-parameters

suite-%: $(VENV)/dev-installed
	KERAS_BACKEND=$* $(PYTEST) $(SHARE)

suite-complete:
	$(MAKE) SHARE= suite

# On JAX, these tests run with XLA's own optimisation level, as users compile.
# All others run with the lowest, see tests/conftest.py.
AS_USERS_COMPILE := tests/losses/test_against_float64.py

suite-jax: $(VENV)/dev-installed
	KERAS_BACKEND=jax XLA_FLAGS= $(PYTEST) $(SHARE) $(AS_USERS_COMPILE)
	KERAS_BACKEND=jax $(PYTEST) $(SHARE) $(AS_USERS_COMPILE:%=--ignore=%)

lint: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev-installed
	$(BIN)/mkdocs build --strict --site-dir build/site
	$(BIN)/python -m pytest -q --noconftest tests/browser

# The wheel and the sdist build, and the wheel works without the checkout.
wheel: $(VENV)/dev-installed
	rm -rf build/dist build/alone
	$(BIN)/python -m build --outdir build/dist . > /dev/null
	$(BIN)/uv venv -q --clear -p $(PYTHON) build/alone
	$(UV_INSTALL) -p build/alone/bin/python build/dist/*.whl
	build/alone/bin/python tests/wheel_alone.py

# Measures all backends, writes benchmarks/results.json and docs/performance.md.
bench: $(VENV)/dev-installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.run
	KERAS_BACKEND=jax $(BIN)/python -m benchmarks.run
	KERAS_BACKEND=torch $(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.report

# The suite on the oldest versions that pyproject.toml allows, and on the newest
# of the registry, each in an environment of its own.
test-oldest: $(BIN)/uv
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install -q -c constraints-oldest.txt torch
	$(VENV)/bin/uv pip install -q -p build/oldest/bin/python \
		-c constraints-oldest.txt -e '.[dev]'
	$(MAKE) BIN=build/oldest/bin versions-tensorflow versions-jax versions-torch

test-newest: $(BIN)/uv
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install -q -U torch
	$(VENV)/bin/uv pip install -q -p build/newest/bin/python -U -e '.[dev]'
	$(MAKE) BIN=build/newest/bin versions-tensorflow versions-jax versions-torch

# Older versions of XLA do not know the flags of tests/conftest.py.
versions-%: export XLA_FLAGS = --xla_backend_optimization_level=0
versions-%:
	KERAS_BACKEND=$* $(PYTEST)

# The examples as Jupyter notebooks, in build/notebooks.
notebooks: $(VENV)/dev-installed
	$(BIN)/python examples/make_notebooks.py

# What takes too long for each change: the complete suite, all notebooks that need
# no download and 20,000 steps run on each backend, each reader of files gets
# damaged files for ten minutes, and the demo.
nightly: suite-complete execute-tensorflow execute-jax execute-torch \
	long-run-tensorflow long-run-jax long-run-torch \
	kills-tensorflow kills-jax kills-torch fuzz demo

execute-%: $(VENV)/dev-installed
	KERAS_BACKEND=$* $(BIN)/python examples/make_notebooks.py --execute

long-run-%: $(VENV)/dev-installed
	KERAS_BACKEND=$* $(BIN)/python tests/long_run.py

# Runs that are killed 30 times each, at random moments.
kills-%: $(VENV)/dev-installed
	KERAS_BACKEND=$* $(BIN)/python -W ignore tests/random_kills.py

fuzz: $(VENV)/dev-installed
	$(BIN)/python tests/fuzz_readers.py --seconds 600

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv

$(VENV)/demo-installed: $(BIN)/uv pyproject.toml constraints.txt
	$(UV_INSTALL) -p $(BIN)/python -e '.[examples,litert,micro]'
	@touch $@

# PyTorch first, with pip, which finds the build that this machine prefers. With
# its version settled, nothing that follows asks for another one.
$(VENV)/dev-installed: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(UV_INSTALL) -p $(BIN)/python -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site runs demo.png demo_student.*
