# `make help` lists the targets. Everything is made inside this folder; pip's cache is the only thing used outside it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FINETUNE ?= 10
DEMO ?= runs/demo
PYTEST = $(BIN)/python -m pytest
TWO = OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-unit test-kernels test-device test-e2e lint native clean

help: ## This list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-13s %s\n", $$1, $$2 }'

venv: $(STAMP) ## Make .venv with pinned dependencies and this package

# The package is installed editable, so only what changes the installation itself makes it anew.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt kernels/native/CMakeLists.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.10 or newer, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); hwprune needs Python 3.10 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install them (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "error: no C++ compiler; install one (Debian: apt-get install g++), or set CXX" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,digits,bench]' ruff
	@touch $@

demo: venv ## Prune the bundled network to half its latency on this machine, compile it, print the table
	$(BIN)/hwprune search --target native --model bundled:digits_resnet --data digits --latency 0.5x \
		--finetune $(FINETUNE) --compile --out $(DEMO) --force

# One after the other: what times kernels wants the cores for itself. The rest takes a process a core.
test: ## All tests
	$(MAKE) test-unit
	$(MAKE) test-kernels
	$(MAKE) test-device
	$(MAKE) test-e2e

test-unit: venv ## Tests that compile nothing, a process a core
	$(TWO) tests/unit

test-kernels: venv ## Tests that build and run kernels on this machine
	$(TWO) -rs -m "not timed" tests/kernels
	$(PYTEST) -rs -m timed tests/kernels

test-device: venv ## Tests that need a cross compiler and an emulator
	$(TWO) -rs tests/device

test-e2e: venv ## Tests that run whole commands
	$(PYTEST) tests/e2e

lint: venv ## Style
	$(BIN)/ruff check --line-length 120 --target-version py310 --select E4,E7,E9,F,B --ignore B905,B008,E731 hwprune kernels tests benchmarks

native: venv ## Build the native tools in kernels/native by themselves
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release
	cmake --build build/native --parallel --target hwprune-run --target hwprune-agent

clean: ## Remove .venv, builds and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache
	find hwprune kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
