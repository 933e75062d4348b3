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

.PHONY: env demo check test test-slow mutants bench gpu gpu-wheels clean

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

# On a machine with a GPU, which may have no network: whatever PYTHON has torch there, without an environment of its own.
gpu:
	$(PYTHON) tools/gpu_check.py

# Where there is a network: what such a machine may lack, to be brought along as build/gpu-wheels.
gpu-wheels:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir build/gpu-wheels "jieba>=0.42.1" "rjieba>=0.2" tqdm

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
