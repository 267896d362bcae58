# make demo | run | test | lint | bench | faults | clean. `make` alone says what each does.
# .venv is made on demand; PYTHON chooses the interpreter that it is made with.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where it is set, every trainer would compile what it imports anew: 15 seconds each time.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
SEED ?= 1
PIP := .venv/bin/python -m pip --disable-pip-version-check --no-input
STAMP := .venv/.installed

.PHONY: help demo run test lint bench faults clean

help: ## print this
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(STAMP) ## the whole road in a temporary home: recall before and after two batches (SEED=1)
	@.venv/bin/python tools/demo.py --seed $(SEED)

run: $(STAMP) ## the daemon in this checkout: drop files in inbox/
	@.venv/bin/engramd run

test: $(STAMP) ## every test, three at a time, the fault runs in their short form
	@.venv/bin/python -m pytest -q -n 3 --dist worksteal

faults: $(STAMP) ## the long fault runs: kills at random moments
	@ENGRAMD_FAULTS_LONG=1 .venv/bin/python -m pytest -q -m faults -o faulthandler_timeout=3600

lint: $(STAMP) ## ruff, mypy (strict), and the floors between modules
	@.venv/bin/ruff check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: $(STAMP) ## the quick form of each benchmark
	@for file in benchmarks/[a-z]*.py; do echo "== $$file --smoke"; .venv/bin/python "$$file" --smoke; done

clean: ## remove what tools leave; .venv, inbox, state and snapshots stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./state -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# One line per package is progress enough; errors come on stderr as pip says them.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "engramd needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (torch is large: this takes minutes the first time)"
	@$(PIP) install --no-compile --progress-bar off -r requirements.lock | \
	  sed -u -nE 's/^Collecting ([^ ]+).*/  \1/p; s/^Installing collected packages:.*/  ... unpacking/p'
	@echo "compiling it"
	@.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true # a package's own broken tests
	@$(PIP) install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@
