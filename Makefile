# Everything goes through these targets, CI included.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS  = dev
# Worker processes share the cores: one thread each, or two processes slow each other down tenfold.
TESTENV = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# make test ORDER=random SEED=3: files, and the tests of each, in an order that the seed gives; without ORDER as they stand.
ORDER   = as-written
SEED    = 1
RANDOM_as-written =
RANDOM_random     = --random-order --random-order-seed $(SEED)
TESTS   = $(TESTENV) $(BIN)/python -m pytest -n 2 --dist worksteal $(RANDOM_$(ORDER))

.PHONY: env demo check test test-slow mutants bench clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --extras $(EXTRAS)
	touch $@

demo: env
	$(BIN)/hanmo demo

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(TESTS) -m "not slow and not gpu"

test-slow: env
	$(TESTS) -m "slow and not gpu"

# Single faults planted in losses, rows, sampling and trainers, each shown to the fast tests of its line (hours; goes on
# where it was stopped). make mutants MUTANTS="--count 300 --seed 2"
mutants: env
	$(TESTENV) $(BIN)/python -m tools.mutants $(MUTANTS)

bench: env
	$(BIN)/python -m benchmarks.run_all

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
