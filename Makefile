# One virtual environment, made from the project's own files. `make` alone lists what there is.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help search test lint types app report bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.base: pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

search: $(VENV)/.base  ## the main job: from the Python on this machine to a winner
	$(BIN)/accelerate launch --config_file configs/accelerate/one.yaml recipes/search_two_stage.py $(ARGS)

test: $(VENV)/.dev  ## the default test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore-glob='*test_app*' $(ARGS)
	$(BIN)/python -m pytest tests/test_app.py tests/test_app_models.py tests/test_app_service.py $(ARGS)  # own process

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy

app: $(VENV)/.dev  ## the playground, on http://127.0.0.1:7860
	$(BIN)/python spaces_app/app.py $(ARGS)

bench: $(VENV)/.dev  ## rewrite the README's tables from benchmarks/results, list targets that are not met
	$(BIN)/python -m benchmarks.table
	$(BIN)/python -m benchmarks.check

clean:  ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
