# Everything runs in .venv, which the first call makes from requirements.txt. Nothing else needs to be installed.

PYTHON ?= python3
SCALE ?= smoke
DATA ?= auto
STUDY ?=
JOBS ?= 2
MINUTES ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup book notebooks test lint record clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  variables: SCALE=smoke|laptop|paper (book, record), DATA=auto|embedded (book), PYTHON=python3 (setup),"
	@echo "             STUDY=name JOBS=2 MINUTES=n (record; JOBS also for test)"

setup: $(STAMP) ## make .venv and install the pinned requirements and the library into it

$(STAMP): requirements.txt pyproject.toml lib/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed, and '$(PYTHON)' is none; name one, as in: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e . -e lib
	@touch $@

book: $(STAMP) ## execute the notebooks that changed at SCALE and build the book in _build/html
	@$(BIN)/python -m gradtune book --scale $(SCALE) --data $(DATA)

notebooks: $(STAMP) ## execute the source notebooks in place: the smoke output they are stored with
	@$(BIN)/python -m gradtune_book.notebooks.runner

test: $(STAMP) ## run all tests: unit, reference, property, notebooks, book, browser
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: $(STAMP) ## ruff (rules and format) and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

record: $(STAMP) ## record the runs of STUDY at SCALE that are missing
	@test -n "$(STUDY)" || { echo "make: which study? as in: make record STUDY=clip_quadratic SCALE=laptop" >&2; exit 2; }
	@$(BIN)/python -m gradtune record $(STUDY) --scale $(SCALE) --jobs $(JOBS) $(if $(MINUTES),--minutes $(MINUTES))

clean: ## remove what was built (not .venv, data or records)
	rm -rf _build book/executed .pytest_cache .mypy_cache .ruff_cache .hypothesis
