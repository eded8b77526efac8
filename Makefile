PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lint types bench notebooks clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.stamp ## train a small model with and without techniques, and compare
	$(BIN)/lightning-tricks demo

# The tests' models are tiny and some tests run two processes: more threads only wait for one another.
test: export OMP_NUM_THREADS ?= 1
test: lint types ## run every check: style, types, tests, doctests
	$(BIN)/python -m pytest

lint: .venv/.stamp ## check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.stamp ## check the types of the package
	$(BIN)/mypy --strict

bench: .venv/.stamp ## measure what the techniques cost
	$(BIN)/python -m benchmarks.overhead

notebooks: .venv/.stamp ## run the notebooks from the start and keep their outputs
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	$(BIN)/python -m pytest --nbmake --overwrite notebooks/*.ipynb

clean: ## remove what was built or written here, the environment included
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis lightning_logs \
		checkpoints wandb demo_output
	find lightning_tricks tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"Python 3.11 or later is needed, but $(PYTHON) is %s.%s: make PYTHON=..." % sys.version_info[:2])'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[plots,demo,notebooks,dev]"
	touch $@
