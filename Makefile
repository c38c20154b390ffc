# One door to everything. Needs python3 (>= 3.11), pip and make; all else goes into .venv.
# No venv or ensurepip package is needed: pip installs uv into an environment made without pip.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules
.DEFAULT_GOAL := help

PYTHON     ?= python3
UV_VERSION := 0.13.9
BIN        := .venv/bin
STAMP      := .venv/.synced
PYTEST     := $(BIN)/python -m pytest
# Most tests wait for processes rather than compute, so two of them fit a machine with two cores.
WORKERS ?= 2
LINTED     := src tests $(wildcard tools benchmarks examples)

# The environment's own interpreter, never a downloaded one; no file outside .venv but uv's cache.
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv
unexport VIRTUAL_ENV

.PHONY: help demo test check format bench soak fuzz docs lock setup system clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | while IFS=$$'\t' read -r name text; \
	  do printf '  make %-8s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## make .venv from uv.lock (the other targets do it when needed)

$(BIN)/uv-$(UV_VERSION):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vm0 needs Python 3.11 or newer")'
	"$(PYTHON)" -m venv --without-pip --clear .venv
	"$(PYTHON)" -m pip --python $(BIN)/python install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@ln -f $(BIN)/uv $@

$(STAMP): $(BIN)/uv-$(UV_VERSION) pyproject.toml uv.lock
	$< sync --frozen --quiet --all-groups --python $(BIN)/python
	@ln -f $< $(BIN)/uv  # sync removes what is not in uv.lock, uv's own package included
	@touch $@

system: $(STAMP) ## install the Debian packages that tests and benchmarks need (root on Debian only)
	@$(BIN)/python -m tools.system_packages

demo: $(STAMP) ## an agent job in a virtual machine (as root; ARGS=--process: without)
	$(BIN)/python examples/demo.py $(ARGS)

test: $(STAMP) system ## all tests but the slow ones; ARGS="tests/unit -k frame" narrows
	$(PYTEST) -m "not slow" -n $(WORKERS) --durations=15 $(ARGS)

soak: $(STAMP) system ## the slow tests
	$(PYTEST) -m slow --durations=15 $(ARGS)

check: $(STAMP) ## linters, types, generated docs, lock file
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run $(wildcard tools/*.sh)
	@if [ -e tools/docs.py ]; then $(BIN)/python -m tools.docs --check; fi
	$(BIN)/uv-$(UV_VERSION) lock --check --quiet --python $(BIN)/python

format: $(STAMP) ## format the code and sort the imports
	$(BIN)/ruff check --fix-only $(LINTED)
	$(BIN)/ruff format $(LINTED)

bench: $(STAMP) system ## benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(STAMP) ## coverage-guided fuzzing of the decoders
	$(PYTEST) tests/fuzz $(ARGS)

docs: $(STAMP) ## regenerate the generated pages of docs/
	$(BIN)/python -m tools.docs

lock: $(BIN)/uv-$(UV_VERSION) ## resolve uv.lock again after a change of pyproject.toml; ARGS=--upgrade renews all
	$< lock --python $(BIN)/python $(ARGS)

clean: ## remove the environment, caches and builds
	rm -rf .venv .test-cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist htmlcov .coverage
	find src tests $(wildcard tools benchmarks examples) -name __pycache__ -prune -exec rm -rf {} +
