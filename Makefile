# Everything sets itself up: `make demo` and `make test` need only Python 3.10+ with venv and pip.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

# One BLAS/OpenMP thread a test process: two of them run side by side.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help setup demo docs test test-all lint check clean

help:
	@echo "make demo   the whole way on embedded data: train, export, calibrate, build, parity, stream (runs/demo)"
	@echo "make test   lint, types and the tests that take under ten minutes on two cores"
	@echo "make test-all   the same with the long tests"
	@echo "make docs   these pages as a site (site/index.html)"
	@echo "make setup  only the virtual environment"
	@echo "make clean  remove the virtual environment and caches"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@rm -f $(VENV)/ready-*
	@touch $@

demo: $(READY)
	$(BIN)/tsss-edge demo --out runs/demo

docs: $(READY)
	$(BIN)/mkdocs build --quiet --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile -m "not slow_all"

test-all: lint
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile

check: test

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
