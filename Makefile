# make test     every check: format, lint, types, layers, the whole test suite
# make demo     the main job on a folder of yours: make demo SRC=~/Documents (without SRC: this folder)
# make torture  the tests that try to break it, in their long form: MINUTES=10 for each that tries seeds, SEED=n to begin there
# make lint     the checks that run nothing        make format   put the code in shape
# make bench    snapfs beside restic and borg, as far as they are on PATH, into docs/benchmarks.md (an hour, 20 GB)
# make bench-scale   what large repositories cost, and large directories and files, into the same page (ten minutes to an hour, 50 GB)
# make audit    are there known advisories for what is installed?      make wheel-twice   are two builds of the wheel identical?
# make lock     take newer releases of what is installed: writes requirements/
# make clean    away with all that make made
#
# Each sets up first what it needs and what is not there yet: system packages, .venv, the install.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# What is installed for development and CI is what was looked at: these releases, and files with these hashes.  Without isolation,
# so that what packages are built with is among them.
LOCKED := --require-hashes --no-build-isolation
# As pip does for what it copies: without it every start compiles the whole program where Python may not write here.
COMPILE = $(BIN)/python -m compileall -q fs repo cli src/snapfs/__init__.py
INSTALLED_FROM := pyproject.toml setup.py $(wildcard requirements/*.txt) $(wildcard repo/*/_*.pyx) src/snapfs/__init__.py
export PYTHON

.PHONY: test torture demo bench bench-scale lint format clean system audit lock wheel-twice

test: lint
	@echo "-- tests"
	@$(BIN)/pytest --strict-skips --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

torture: .venv/.dev
	@$(BIN)/pytest -m torture --torture $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: .venv/.dev
	@echo "-- format, lint, types, layers"
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/.dev
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

demo: .venv/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" SRC="$(SRC)" tests/demo.sh

bench: .venv/.dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests $(BIN)/python -m bench $(BENCH_ARGS)

bench-scale: .venv/.dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=tests $(BIN)/python -m bench.scale $(BENCH_ARGS)

audit: .venv/.dev
	@.ci/audit

wheel-twice: .venv/.dev
	@.ci/wheel-twice

lock: .venv/.dev
	@$(PIP) install --quiet uv
	@.ci/lock

clean:
	rm -rf .venv .make build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f repo/*/_*.c repo/*/_*.so
	find fs repo cli tests src -name __pycache__ -prune -exec rm -rf {} +

system:
	@.ci/system

.venv/bin/python: | system
	@.ci/step "making .venv" $(PYTHON) -m venv --clear .venv

.venv/.installed: $(INSTALLED_FROM) .venv/bin/python
	@.ci/step "installing snapfs and what it needs into .venv" $(PIP) install -e .
	@$(COMPILE)
	@touch $@

.venv/.dev: $(INSTALLED_FROM) .venv/bin/python
	@.ci/step "installing what snapfs needs to be built into .venv" $(PIP) install $(LOCKED) -r requirements/build.txt
	@.ci/step "installing what it needs and the tools for its tests" $(PIP) install $(LOCKED) -r requirements/dev.txt
	@.ci/step "installing snapfs" $(PIP) install --no-build-isolation --no-deps -e .
	@$(COMPILE)
	@touch .venv/.installed $@
