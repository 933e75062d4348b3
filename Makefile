# Everything goes through these targets, CI included.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS  = dev
# Worker processes share the cores: one thread each, or two processes slow each other down tenfold.
TESTENV = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# make test ORDER=random SEED=3 shuffles the files, and the tests of each, by the seed; the default is the order as written.
ORDER   = as-written
SEED    = 1
RANDOM_as-written =
RANDOM_random     = --random-order --random-order-seed $(SEED)
ifeq ($(origin RANDOM_$(ORDER)),undefined)
$(error ORDER=$(ORDER): expected as-written or random)
endif
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

# Mutation testing: plants single faults in losses, rows, sampling and trainers and runs the fast tests of each line (takes
# hours; continues where it was stopped). make mutants MUTANTS="--count 300 --seed 2"
mutants: env
	$(TESTENV) $(BIN)/python -m tools.mutants $(MUTANTS)

bench: env
	$(BIN)/python -m benchmarks.run_all

# For a machine with a GPU and perhaps no network: uses the torch of PYTHON and installs no environment.
gpu:
	$(PYTHON) tools/gpu_check.py

# For a machine with a network: downloads what that machine may lack; copy build/gpu-wheels there.
gpu-wheels:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir build/gpu-wheels "jieba>=0.42.1" "rjieba>=0.2" tqdm

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
