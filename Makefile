# Two commands do everything on a machine with Python and git:
#   make demo    the main job on the embedded model; ends by saying where report.html is
#   make test    all checks: ruff, mypy --strict, pytest
# Both make the environment first where it is absent. VENV=folder and PYTHON=interpreter choose others.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
TORCH := 2.13.0
NEEDED_MIB := 4096
BIN := $(VENV)/bin
OUT ?= mixdq-demo
# Files of tests go to so many processes of one thread each.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format env clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/ready
	@$(BIN)/mixdq demo -o $(OUT)

test: $(VENV)/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/ready
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

env: $(VENV)/ready

# torch comes first and by its exact version: an open range may fetch another build of several gigabytes.
$(VENV)/ready: pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "mixdq needs Python 3.11 or newer: install it, or name one with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "mixdq needs Python 3.11 or newer and '$(PYTHON)' is not: name another with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@[ -x "$(BIN)/python" ] || { mkdir -p "$(VENV)" && free=$$(( $$(df -Pk "$(VENV)" | awk 'NR == 2 {print $$4}') / 1024 )); [ $$free -ge $(NEEDED_MIB) ] || { echo "the environment needs $(NEEDED_MIB) MiB of disk and $$free are free in $(VENV): free some, or put it elsewhere with 'make VENV=/path'." >&2; exit 1; }; }
	@echo "making the environment in $(VENV) (once; some minutes) ..."
	@[ -x "$(BIN)/python" ] || "$(PYTHON)" -m venv "$(VENV)" || { echo "no virtual environment could be made in $(VENV): install Python's venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@{ $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"; } || { echo "the environment could not be completed (see above): mend the cause (network, disk space) and run make again; it goes on where it stopped." >&2; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .ruff_cache .pytest_cache .hypothesis
