# make demo      run the whole method on real data, in this folder's own environment
# make test      run the tests
# make test-ray  run those of them that start Ray clusters
# make check     format, lint, types, import contracts, examples in docstrings
# make clean     remove the environment and all caches
#
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3

# Targets are relative and without spaces: make cannot name others, while the folder may.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-ray check clean
.DELETE_ON_ERROR:

# without bytecode each of the hundreds of processes that tests start would compile all modules
unexport PYTHONDONTWRITEBYTECODE

demo: $(VENV)/demo.stamp
	@$(BIN)/musketeers demo

# more OpenMP threads than cores make small tensors wait for each other; a file stays with one
# process, which compiles its loops once
test: $(VENV)/test.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test-ray: $(VENV)/test.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ray -n 2 --dist loadfile

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --doctest-modules src

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/demo.stamp: $(VENV)/created.stamp requirements/demo.txt pyproject.toml
	@echo "Installing the pinned packages into $(VENV) (once, about 1 GB with PyTorch)"
	@$(PIP) install -r requirements/demo.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp requirements/test.txt
	@$(PIP) install -r requirements/test.txt
	@touch $@

$(VENV)/created.stamp:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not; name one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; \
	  exit 1; }
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@
