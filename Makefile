# make help          Two commands do everything on a fresh machine: make train, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test test-chaos check format bench clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## .venv with everything installed; does nothing when that is up to date

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,clean,optuna,tensorboard]'
	$(BIN)/python -m compileall -q llmtrain tests  # pip does it for packages, not for sources that are edited
	@touch $@

train: setup  ## the main job: a character-level GPT on the shipped text; ARGS="key=value ..." changes it
	$(BIN)/llmtrain train experiment=shakespeare_char_cpu strategy=hybrid strategy.tp=1 strategy.dp_replicate=-1 $(ARGS)

test: setup  ## every test but the long ones; ARGS="-k name" selects
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-chaos: setup  ## the long tests, and those that kill, interrupt and corrupt
	$(BIN)/python -m pytest -m "slow or chaos" --timeout 1800 $(ARGS)

check: setup  ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## put the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## time a training step beside plain PyTorch, the loader, prepare beside bare encoders, checkpoints beside dd, a start beside torchrun
	$(BIN)/python -m benchmarks $(ARGS)
	test -n "$(ARGS)" || $(BIN)/python -m benchmarks.prepare
	test -n "$(ARGS)" || $(BIN)/python -m benchmarks.checkpoint
	test -n "$(ARGS)" || $(BIN)/python -m benchmarks.launch

clean:  ## remove builds and caches; .venv/, runs/ and sweeps/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
