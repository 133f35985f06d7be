# Two commands do all the set-up themselves, from a bare checkout with Python
# 3.11, git and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL = 3
export MPLBACKEND = Agg

.PHONY: demo test suite lint docs wheel bench clean notebooks nightly

demo: $(VENV)/demo-installed
	$(BIN)/python experiments/digits.py

test: lint docs wheel suite
	@echo "All checks passed."

suite: suite-tensorflow suite-jax suite-torch

suite-%: $(VENV)/dev-installed
	KERAS_BACKEND=$* $(BIN)/python -m pytest -q -n 2 --dist worksteal

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
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip install -q -c constraints.txt build/dist/*.whl
	build/alone/bin/python tests/wheel_alone.py

# Measures all backends, writes benchmarks/results.json and docs/performance.md.
bench: $(VENV)/dev-installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.run
	KERAS_BACKEND=jax $(BIN)/python -m benchmarks.run
	KERAS_BACKEND=torch $(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.report

# The examples as Jupyter notebooks, in build/notebooks.
notebooks: $(VENV)/dev-installed
	$(BIN)/python examples/make_notebooks.py

# What takes too long for each change: all notebooks that need no download run
# on each backend, and the demo.
nightly: execute-tensorflow execute-jax execute-torch demo

execute-%: $(VENV)/dev-installed
	KERAS_BACKEND=$* $(BIN)/python examples/make_notebooks.py --execute

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[examples]'
	@touch $@

# PyTorch first and by itself: with its version settled, nothing that follows
# asks for another build of it.
$(VENV)/dev-installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site runs demo.png demo_student.keras
