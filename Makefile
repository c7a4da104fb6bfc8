# make train   environment, MPI if none is there, Horovod, then Parle on handwritten digits (built-in real data)
# make test    the same set-up, then every test
# make lint    ruff; make clean-env removes the environment
#
# PYTHON=python3.12   the Python to start from     TORCH=torch==2.9.1   another torch
# NP=4                ranks for make train         ARGS="--out runs/x"  settings for make train

PYTHON ?= python3
VENV ?= .venv
NP ?= 4
ARGS ?=

BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
# laptops have fewer cores than ranks, which are not to be pinned to one each, and containers run as root
export OMPI_MCA_rmaps_base_oversubscribe := 1
export OMPI_MCA_hwloc_base_binding_policy := none
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1

.PHONY: train test lint clean-env

train: $(VENV)/ready
	mpirun -np $(NP) $(BIN)/python -m parle_hpc.train $(ARGS)

test: $(VENV)/ready lint
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/ready: setup.py install/environment.py install/horovod.py
	$(PYTHON) install/environment.py $(VENV)
	@touch $@

clean-env:
	rm -rf $(VENV)
