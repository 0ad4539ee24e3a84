# Everything works on a fresh clone with Python 3.11+ and make; VENV= puts the environment elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that run at the same time. Two keep two cores busy: Ray's processes work beside each test
# that starts them.
JOBS ?= 2
# Which of the long tests `make test` runs: K/N for those that are K modulo N in their list.
LONG ?= none
# A process that dies with its test ends the run: pytest-xdist's loadfile hands finished files out
# again then, and waits for them for ever.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --max-worker-restart 0

# Many containers set it. Every process would then compile what it imports, which takes as long as
# the import: pip has compiled nothing (below), and nothing would be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo bench-method test test-all test-fast lint format clean cluster-up cluster-down

install: $(VENV)/.installed

# Python compiles the few modules that are used when it first imports them; pip would compile all
# 23,000, which takes as long as the rest of the installation.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/qdmr demo --out runs/demo

# Whether the method closes the gap between two lenses: photographs, trainings of all variants with
# three seeds, and their table. It takes hours, and goes on where it was interrupted.
bench-method: install
	$(BIN)/python datasets/bench_photographs.py --out runs/bench/data
	$(BIN)/qdmr sweep experiments/bench/method.yaml --storage runs/bench
	$(BIN)/qdmr compare runs/bench/method --reference source-only

test: install
	# With the slowest, so that what makes the suite longer is seen where it happens.
	$(PYTEST) --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=3 --long $(LONG)

# With all scenarios of lost nodes, killed sweeps and failing stores.
test-all:
	$(MAKE) test LONG=0/1

# What needs neither Ray's processes nor a browser nor long.
test-fast: install
	$(PYTEST) --dist worksteal -m "not ray and not browser and not slow"

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
