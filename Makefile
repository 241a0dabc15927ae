# Every target does its own set-up: python3 (3.11 or later) with venv and pip, and a C++ compiler, are all it needs.
#   make demo                 review GPT-2's decode step here; without a GPU, also predict it on an H200
#   make test lint types      the checks
#   USE_SYSTEM=1 make demo    no virtual environment: run with $(PYTHON)'s own packages (a machine without a network)

PYTHON ?= python3
VENV ?= .venv
USE_SYSTEM ?= 0

ifeq ($(USE_SYSTEM),1)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
RUN := $(PYTHON)
STAMP :=
else
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
endif

# Two files of tests at a time; one on a machine with a GPU, which tests that measure on it must not share.
PARALLEL := $(if $(filter 1,$(USE_SYSTEM))$(shell command -v nvidia-smi),,-n 2 --dist loadfile)
SARIF_SCHEMA := build/sarif/package/lib/schemas/sarif-2.1.0-rtm.5.json

.DEFAULT_GOAL := help
.PHONY: help install demo test test-tools lint format types clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 4

install: $(STAMP)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(RUN) docs/demo.py

test: $(STAMP) test-tools
	$(RUN) -m pytest -q $(PARALLEL)

# What two tests use beside Python packages: a browser, and the official schema of SARIF.  Best effort: without one, its
# test is skipped and says so.
test-tools: $(STAMP)
ifneq ($(USE_SYSTEM),1)
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || echo "no chromium: its tests are skipped"
	@[ -s $(SARIF_SCHEMA) ] || { mkdir -p build/sarif && cd build/sarif \
		&& npm pack --silent --fetch-retries=0 @microsoft/jest-sarif@1.0.0-beta.0 >/dev/null \
		&& tar xzf *.tgz package/lib/schemas/sarif-2.1.0-rtm.5.json; } || echo "no SARIF schema: its test is skipped"
endif

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

types: $(STAMP)
	$(RUN) -m mypy

clean:
	rm -rf build dist $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache
