# Menagerie's commands. Each does all of its own set-up, into .venv, and can be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test proofs setup lint help

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# One thread per process, and threads that sleep while they wait: two that spin can be ten times slower than one.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## the virtual environment, with the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@cluster/packages.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check uv
	uv pip install --quiet --python $(VENV)/bin/python --constraint constraints.txt --editable '.[evaluation,development]'
	touch $@

lint: setup  ## ruff, mypy and the import contract
	ruff check .
	ruff format --check .
	mypy
	lint-imports
