# `make` alone lists the targets. To be set on the command line:
#   PYTHON=python3.12   the interpreter of a new environment (3.11 to 3.13)
#   VENV=folder         the environment, .venv unless set
#   TORCH_INDEX=url     where torch comes from, e.g. https://download.pytorch.org/whl/cpu; pip's own index unless set
PYTHON ?=
VENV ?= .venv
TORCH_INDEX ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# Compiling all of torch and transformers takes longer than installing them, so modules are compiled when first imported.
unexport PYTHONDONTWRITEBYTECODE
export NO_MKDOCS_2_WARNING := 1
# Tests run side by side, each on one thread.
check test test-slow: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-bad test test-slow check bench docs clean

help: ## list these targets
	@echo "make TARGET, where TARGET is:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.runtime ## the whole pipeline on the embedded model, feedback to report
	@$(BIN)/assay demo

demo-bad: $(VENV)/.runtime ## the same with a reward that loves length: the audit must stop it
	@$(BIN)/assay demo --bad

test: check ## set up and check everything, as CI does

check: $(VENV)/.dev ## lint, format, layers, types, documentation, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/mkdocs build --strict --quiet
	$(PYTEST)

test-slow: $(VENV)/.dev ## the tests that train for minutes
	$(PYTEST) -m slow

bench: $(VENV)/.runtime ## measure speed; figures go to benchmarks/results
	@$(BIN)/python benchmarks/bench.py

docs: $(VENV)/.dev ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean: ## remove the environment, caches and built files
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	  echo "Set-up 1/4: $$("$$python" --version) in $(VENV)"; \
	  "$$python" -m venv $(VENV) && $(INSTALL) -qq --upgrade pip && touch $@; exit; \
	done; \
	echo "Assay needs Python 3.11, 3.12 or 3.13, and $(or $(PYTHON),python3) is $$("$(or $(PYTHON),python3)" --version 2>&1)." >&2; \
	echo "Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Set-up 2/4: torch (on Linux with its CUDA libraries, several GB; TORCH_INDEX=... chooses another build)"
	@$(INSTALL) $$([ -t 1 ] || echo -qq) torch $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))
	@echo "Set-up 3/4: Assay and the packages it runs on"
	@$(INSTALL) -qq --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Set-up 4/4: the packages that check and document it"
	@$(INSTALL) -qq --group dev --group docs pytest-xdist
	@touch $@
