# Everything works on a fresh clone with Python 3.11+ and make; VENV= puts the environment elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint format clean cluster-up cluster-down

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/qdmr demo --out runs/demo

test: install
	# Two at a time keep two cores busy: Ray's processes work beside each test that starts them.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Three Ray nodes on this machine: eval "$$(make -s cluster-up)", then qdmr submit.
cluster-up: install
	@$(BIN)/python cluster/local/nodes.py up

cluster-down: install
	@$(BIN)/python cluster/local/nodes.py down

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
