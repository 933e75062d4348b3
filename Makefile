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

.PHONY: help env demo settings check test test-slow soak mutants bench gpu gpu-wheels clean

help:  ## list the targets (also make without a target)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(VENV)/.installed  ## make the virtual environment and install hanmo into it

$(VENV)/.installed: pyproject.toml constraints.txt tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --extras $(EXTRAS)
	touch $@

demo: env  ## train a small model and talk to it
	$(BIN)/hanmo demo

settings: env  ## write docs/settings.md and the settings in --help from the settings' docstrings
	$(BIN)/python -m tools.settings_docs

# .pre-commit-config.yaml has the same commands.
check: env  ## check format, lint, types, layers, docs/settings.md and sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.settings_docs --check
	$(BIN)/python -m tools.house --strict

test: check  ## run check and the fast tests (seven minutes on two cores); ORDER=random SEED=3 shuffles them
	$(TESTS) -m "not slow and not gpu"

test-slow: $(VENV)/.conformance  ## run the tests of minutes, with the clients of the server
	$(TESTS) -m "slow and not gpu"

$(VENV)/.conformance: $(VENV)/.installed
	$(PYTHON) tools/install.py --venv $(VENV) --extras $(EXTRAS),conformance
	touch $@

soak: env  ## ten minutes of hostile traffic against hanmo serve
	HANMO_SOAK_SECONDS=600 $(TESTENV) $(BIN)/python -m pytest -s tests/e2e/test_serving_soak.py

# Mutation testing: faults in losses, rows, sampling and trainers, each shown to the fast tests that run its line.
# make mutants MUTANTS="--count 300 --seed 2"
mutants: env  ## plant faults and see which ones no test finds (half an hour; continues where it was stopped)
	$(TESTENV) $(BIN)/python -m tools.mutants $(MUTANTS)

bench: env  ## run the benchmarks and write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run_all

# For a machine with a GPU and perhaps no network: uses the torch of PYTHON and installs no environment.
gpu:  ## check this machine's GPU, with the torch of PYTHON
	$(PYTHON) tools/gpu_check.py

# For a machine with a network: downloads what that machine may lack; copy build/gpu-wheels there.
gpu-wheels:  ## download what a machine without a network needs for make gpu
	$(PYTHON) -m pip wheel --no-deps --wheel-dir build/gpu-wheels "jieba>=0.42.1" "rjieba>=0.2" tqdm

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
