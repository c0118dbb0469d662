# Everything on a fresh machine with Python 3.12: `make quickstart`, `make test`.
PYTHON ?= python3.12
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install quickstart test unit lint format docs bench bench-gpu bench-input attack lowest clean

install: $(INSTALLED)

# The stamp is written last, so that an install cut short is done again.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/torchgeo fit --config configs/quickstart.yaml

# One thread for each of the two processes: more of them fight for two cores.
test unit: export OMP_NUM_THREADS = 1

test: lint
	$(BIN)/python -m pytest -n 2

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m 'not cli'

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The site, in build/docs. Warnings and broken links within it are errors.
docs: export OMP_NUM_THREADS = 1
docs: $(INSTALLED)
	rm -rf build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	$(BIN)/python docs/check_links.py build/docs

bench: $(INSTALLED)
	$(BIN)/python benchmarks/cpu.py --output benchmarks/results/cpu.json

bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py --output benchmarks/results/gpu.json

bench-input: $(INSTALLED)
	$(BIN)/python benchmarks/input.py --output benchmarks/results/input.json

# Kills runs, feeds malformed files, injects faults; writes the table of
# docs/reliability.md. Under 15 minutes on two cores.
attack: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.attack

# The lowest versions that pyproject.toml allows, in an environment of their own.
LOWEST := .venv-lowest
lowest: export OMP_NUM_THREADS = 1
lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
	  --resolution lowest-direct --editable . 'pytest==8.4'
	$(LOWEST)/bin/python -m pytest -q tests/functional tests/adapt/test_delta_file.py \
	  tests/datasets/folder tests/datasets/prepared/test_format.py \
	  tests/models/backbones/test_vit.py tests/objectives/test_dinov2.py \
	  tests/tasks/run/test_plan.py

clean:
	rm -rf outputs lightning_logs build dist *.egg-info
