# Two commands on a fresh machine: `make demo` and `make test`. Every target here creates .venv if it is missing.
PYTHON ?= python3
VENV ?= .venv
# Further arguments for pip, such as another index for torch.
PIP_ARGS ?=
PYTEST_ARGS ?=
BIN := $(VENV)/bin

.PHONY: demo test test-all docs lint format release-check clean

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py demo_output

# transformers' own model tests are fetched once; without a network they are skipped, with the reason.
test: $(VENV)/.installed lint
	-$(BIN)/python scripts/fetch_transformers_tests.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" $(PYTEST_ARGS)

# Also the tests that are marked slow.
test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m slow $(PYTEST_ARGS)

# The site in docs/_build. A warning, such as a broken link, is an error.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Wheel and sdist, each tried in an empty environment.
release-check: $(VENV)/.installed
	$(BIN)/python scripts/check_release.py --constraint constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .cache demo_output dist docs/_build
