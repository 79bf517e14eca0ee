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

# Compiling every module of torch and transformers takes longer than installing them: each is compiled at first import.
unexport PYTHONDONTWRITEBYTECODE
export NO_MKDOCS_2_WARNING := 1
# Tests run side by side, each on one thread.
tests test-slow: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-bad test check lint layers types docs tests test-slow bench clean

help: ## list these targets
	@echo "make TARGET, where TARGET is:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.runtime ## the whole pipeline on the embedded model, feedback to report
	@$(BIN)/assay demo

demo-bad: $(VENV)/.runtime ## the same with a reward that loves length: the audit must stop it
	@$(BIN)/assay demo --bad

test: check ## set up what is missing and check everything, as CI does

check: lint layers types docs tests ## the same; each part is a target too

lint: $(VENV)/.dev ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: $(VENV)/.dev ## imports point down
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev ## basedpyright
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev ## build the documentation into site/
	$(BIN)/mkdocs build --strict

tests: $(VENV)/.dev ## pytest, on up to four cores
	$(PYTEST)

test-slow: $(VENV)/.dev ## the tests that train for minutes
	$(PYTEST) -m slow

bench: $(VENV)/.runtime ## measure speed; figures go to benchmarks/results
	@$(BIN)/python benchmarks/bench.py

clean: ## remove the environment, caches and built files
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	  echo "Set-up 1/4: $$("$$python" --version) in $(VENV)"; \
	  "$$python" -m venv $(VENV) && $(INSTALL) -qq --upgrade pip && touch $@; exit; \
	done; \
	echo "Assay needs Python 3.11, 3.12 or 3.13; $(or $(PYTHON),python3) says:" >&2; \
	"$(or $(PYTHON),python3)" --version >&2; \
	echo "Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Set-up 2/4: torch (on Linux with its CUDA libraries, several GB; TORCH_INDEX=... chooses another build)"
	@$(INSTALL) $$([ -t 1 ] || echo -qq) torch $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))
	@echo "Set-up 3/4: Assay and the packages it runs on"
	@$(INSTALL) -qq --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Set-up 4/4: the packages that check and document it"
	@$(INSTALL) -qq --group dev --group docs
	@touch $@
