# Everything sets itself up: `make demo` and `make test` need only Python 3.10+ with venv and pip.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TOOLS  := $(VENV)/tools
READY  := $(VENV)/ready-$(shell cat pyproject.toml constraints.txt requirements.lock | cksum | cut -d' ' -f1)

# One BLAS/OpenMP thread a test process: two of them run side by side.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: soak mutants lock wheel help setup demo docs test test-all lint check clean

help:
	@echo "make demo   the whole way on embedded data: train, export, calibrate, build, parity, stream (runs/demo)"
	@echo "make test   lint, types and the tests that take under ten minutes on two cores"
	@echo "make test-all   the same with the long tests"
	@echo "make docs   these pages as a site (site/index.html)"
	@echo "make soak   kills, damaged inputs, full disks, dead sources, an hour of stream (hours)"
	@echo "make mutants   small changes to the code, each of which some test must notice (hours)"
	@echo "make lock   requirements.lock from constraints.txt"
	@echo "make wheel  the wheel and its list of parts (CycloneDX) in dist"
	@echo "make setup  only the virtual environment"
	@echo "make clean  remove the virtual environment and caches"

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))'; then \
	  $(PIP) --require-hashes --no-deps -r requirements.lock && $(PIP) --no-deps --no-build-isolation -e .; \
	else $(PIP) -c constraints.txt -e ".[dev]"; fi
	@rm -f $(VENV)/ready-*
	@touch $@

demo: $(READY)
	$(BIN)/tsss-edge demo --out runs/demo

docs: $(READY)
	$(BIN)/mkdocs build --quiet --strict

lint: $(READY)
	$(BIN)/python -m pip check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile -m "not slow_all"

test-all: lint
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile

check: test

# How it bears kills, damage, full disks and dead sources; hours, so not in CI's time. Each takes --seed and --seconds.
SOAK := PYTHONPATH=scripts $(TEST_ENV) $(BIN)/python -m

soak: $(READY)
	$(SOAK) soak.kill --kills 200
	$(SOAK) soak.fuzz --inputs 10000
	$(SOAK) soak.disk
	$(SOAK) soak.sources --deaths 100
	$(SOAK) soak.page --clients 200 --body-mib 1024
	$(SOAK) soak.live --seconds 3600 --engine-ms 20 --no-viewer

mutants: $(READY)
	$(SOAK) soak.mutants --mutants 200

lock:
	PYTHON=$(PYTHON) scripts/lock.sh $(TOOLS)

# Wheel and, beside it, the list of what it is built and tested with (CycloneDX).
wheel: $(READY)
	rm -rf dist && $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	PYTHON=$(PYTHON) scripts/sbom.sh $(TOOLS)

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
