# `make train` in a fresh clone installs what a run needs and starts one; `make test` and `make lint` install the rest.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: train test lint format docs clean

train: .venv/.run
	$(BIN)/python train.py model=hgnn dataset=movielens

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv cache .mypy_cache .pytest_cache .ruff_cache

# torch alone first: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes it the small build without CUDA
.venv/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
