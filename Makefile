PYTHON ?= python3
BIN := .venv/bin

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## make .venv: pinned packages, Horovod built for this machine and cached
	@$(PYTHON) deploy/bootstrap.py

demo: setup ## train on handwritten digits with two Horovod workers
	@$(BIN)/python deploy/demo.py

test: setup ## run all tests; PYTEST="-k plan" selects some
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.run $(PYTEST)

fast: check ## the checks, and the unit tests that take seconds
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.run -m "unit and not slow" $(PYTEST)

chaos: setup ## faults in real trainings, drawn by a seed; CHAOS="--cases 150 --seed 1" passes options
	@$(BIN)/python -m tests.chaos $(CHAOS)

fuzz: setup ## damaged files for every reader: FUZZ=3000 of each, other ones each time
	@FUZZ=$(or $(FUZZ),3000) $(BIN)/python -m pytest -q tests/unit/fuzz

horovod-tests: setup ## Horovod's own tests on our Horovod; HOROVOD_TESTS="--ranks 2 --stock" passes options
	@PYTHONPATH="$(CURDIR)" $(BIN)/python deploy/horovod_tests.py $(HOROVOD_TESTS)

docs: setup ## build the documentation in site/; a dead link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: setup ## format, lint, types, import contracts, documentation
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheels: setup ## fill dist/wheels for machines without internet
	@$(BIN)/python deploy/wheels.py

clean: ## remove .venv and caches; runs/ and data/ stay
	rm -rf .venv .setup .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo test fast chaos fuzz horovod-tests docs check wheels clean
