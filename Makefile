# Everything runs in .venv, which the first call makes from requirements.lock. Nothing else needs to be installed.

PYTHON ?= python3
SCALE ?= smoke
DATA ?= auto
STUDY ?=
JOBS ?= 2
DEVICE ?= cpu
MINUTES ?=
COVERAGE ?=
UPGRADE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COVERED := --cov=gradtune --cov=gradtune_book --cov-report=term:skip-covered

.DEFAULT_GOAL := help
.PHONY: help setup book notebooks test lint record lock wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  variables: SCALE=smoke|laptop|paper (book, record), DATA=auto|embedded (book), PYTHON=python3 (setup),"
	@echo "             DEVICE=cpu|cuda (book, record), STUDY=name JOBS=2 MINUTES=n (record; JOBS also for test),"
	@echo "             COVERAGE=1 (test), UPGRADE=1 (lock)"

setup: $(STAMP) ## make .venv and install the locked requirements, the library and the book into it

$(STAMP): requirements.lock pyproject.toml lib/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed, and '$(PYTHON)' is none; name one, as in: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e lib
	@touch $@

book: $(STAMP) ## execute the notebooks that changed at SCALE and build the book in _build/html
	@$(BIN)/python -m gradtune book --scale $(SCALE) --data $(DATA) --device $(DEVICE)

notebooks: $(STAMP) ## execute the source notebooks in place: the smoke output they are stored with
	@$(BIN)/python -m gradtune_book.notebooks.runner

test: $(STAMP) ## run all tests: unit, reference, property, notebooks, book, browser
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(if $(COVERAGE),$(COVERED))

lint: $(STAMP) ## ruff (rules and format) and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

lock: ## work out requirements.lock, with hashes, from requirements.txt (UPGRADE=1: newest indirect ones)
	@$(PYTHON) -m venv _build/uv && _build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@UV_CUSTOM_COMPILE_COMMAND="make lock" _build/uv/bin/uv pip compile requirements.txt --quiet --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade) \
	  --output-file requirements.lock

wheel: $(STAMP) ## build the wheel of the library, which holds nothing of the book, in dist/
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

record: $(STAMP) ## record the runs of STUDY at SCALE that are missing
	@test -n "$(STUDY)" || { echo "make: which study? as in: make record STUDY=clip_quadratic SCALE=laptop" >&2; exit 2; }
	@$(BIN)/python -m gradtune record $(STUDY) --scale $(SCALE) --jobs $(JOBS) --device $(DEVICE) $(if $(MINUTES),--minutes $(MINUTES))

clean: ## remove what was built (not .venv, data or records)
	rm -rf _build build dist book/executed .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
