# Every target makes the environment that it needs; nothing has to be installed first but Python 3.11+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What the tests write need not outlive a power cut: where it is installed, no disk is waited for.
PYTEST := $(wildcard /usr/bin/eatmydata) $(BIN)/python -m pytest --dist worksteal --durations=40 --durations-min=1
# The tests start hundreds of processes; where bytecode is not kept, each of them compiles all of src again.
export PYTHONDONTWRITEBYTECODE :=
# Matrices of tiny models: more threads for one wait longer for one another than they calculate.
export OMP_NUM_THREADS ?= 1

.PHONY: env demo test test-slow test-all test-outside test-gpu lint check format clean docs

env: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python ci/install.py dev
	touch $@ $(VENV)/.sandbox

# What the demo needs alone, without the tools of those who work on it.
$(VENV)/.sandbox: pyproject.toml | $(BIN)/python
	@echo "Installing the package with what trains on this machine (torch, transformers, peft) into $(VENV)"
	$(BIN)/python ci/install.py sandbox
	touch $@

demo: $(VENV)/.sandbox
	$(BIN)/orchestrate demo .demo

test: env
	$(PYTEST) -n 3 -m 'not slow and not gpu'

test-slow: env
	$(PYTEST) -n 3 -m 'slow and not gpu'

# Both in one run: the tests are collected, and what they share is made, once.
test-all: env
	$(PYTEST) -n 3 -m 'not gpu'

# Engines and clients of others, some gigabytes of them, each in an environment of its own under .outside/.
test-outside: env
	$(BIN)/python -m tests.outside
	$(BIN)/python -m pytest -m outside

# What only a card can show, in minutes, as one table; skipped, with the reason, where there is none. Of Liger
# only where it is installed (the extra `liger`).
test-gpu: env
	$(BIN)/python -m pytest -n 0 -m gpu tests/gpu

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -n 3 -m 'not slow and not gpu' --cov --cov-report=

docs: env
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .demo
