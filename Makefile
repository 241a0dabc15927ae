# Every target does its own set-up: python3 (3.11 or later) with venv and pip, and a C++ compiler, are all it needs.
#   make demo                 review GPT-2's decode step on this machine (CUDA if there is one)
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

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 4

install: $(STAMP)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(RUN) -c 'import sys; from taxbreak_fx.cli import entry; sys.exit(entry())' \
		review gpt2 --phase decode --device auto --out build/demo

test: $(STAMP)
	$(RUN) -m pytest -q

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
