# make train   environment, MPI if none is there, Horovod, then Parle on handwritten digits (built-in real data)
# make test    the same set-up, then every test
# make check   the tests that need neither mpirun nor Slurm nor root: a minute, for the inner loop of who changes something
# make lint    ruff, the floors of the house (import-linter), types of the public names (mypy)
# make soak    N=100 runs that are killed and go on (RANKS=4 or 3 each), then a run of other numbers of replicas; hours
# make fuzz    N=500 bad inputs
# make matrix  each call of the optimiser and the topology left out, made twice, or too early, on one rank; half an hour
# make slurm   Debian's packages with which the tests of a cluster run, and without which they skip; needs root
# make clean-env removes the environment
# make container-test   containers/cpu.def executed in a tree of debootstrap, and used there; root, Debian
#
# PYTHON=python3.12   the Python to start from     TORCH=torch==2.9.1   another torch
# NP=4                ranks for make train         ARGS="--out runs/x"  settings for make train
# VENV=/scratch/me/x  the environment elsewhere

PYTHON ?= python3
VENV ?= .venv
NP ?= 4
ARGS ?=

# the shell's own words for a folder, since make knows no names with spaces in targets
override VENV := $(patsubst ~/%,$(HOME)/%,$(VENV))
ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): a folder without a space in its name is needed; the clone's own may have one)
endif

BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(value PATH)
# the environment is complete; what modules and other environments bring is for other Pythons
unexport PYTHONPATH PYTHONHOME
# laptops have fewer cores than ranks, which are not to be pinned to one each, and containers run as root
export OMPI_MCA_rmaps_base_oversubscribe := 1
export OMPI_MCA_hwloc_base_binding_policy := none
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1

# Slurm looks for PMIx under the name that only the development package has
SLURM_PACKAGES := slurm-wlm munge libpmix-dev iproute2 procps

N ?= 100
RANKS ?= 4

.PHONY: train test check soak fuzz matrix lint slurm container-test clean-env launcher

train: launcher $(VENV)/ready
	mpirun -np $(NP) $(BIN)/python -m parle_hpc.train $(ARGS)

# an MPI without mpirun serves batch jobs, and is no reason to build for minutes first
launcher:
	@command -v mpirun > /dev/null || ! command -v mpicxx > /dev/null || { \
	    echo "make train: there is mpicxx and no mpirun here; make $(VENV)/ready, and srun as docs/clusters.md says" >&2; exit 2; }

# on the CI machine no test of a cluster may skip
test: $(if $(PARLE_HPC_CI),slurm) $(VENV)/ready
	$(BIN)/python -m pytest

check: $(VENV)/ready
	$(BIN)/python -m pytest -m "not cluster"

soak: $(VENV)/ready
	$(BIN)/python tests/faults/soak.py $(N) --ranks $(RANKS)
	PYTHONPATH=tests $(BIN)/python tests/faults/regroup.py

matrix: $(VENV)/ready
	PYTHONPATH=tests $(BIN)/python tests/faults/matrix.py

fuzz: $(VENV)/ready
	PYTHONPATH=tests $(BIN)/python tests/faults/fuzz.py $(N)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

slurm:
	dpkg --status $(SLURM_PACKAGES) > /dev/null 2>&1 || { apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $(SLURM_PACKAGES); }

# what was moved or copied to another place does not work there, nor without the Python that it was made with
ifneq ($(shell test -x $(BIN)/python && cat $(VENV)/ready 2> /dev/null),$(realpath $(VENV)))
.PHONY: $(VENV)/ready
endif

$(VENV)/ready: setup.py $(wildcard install/*.py)
	$(PYTHON) install/environment.py $(VENV)

container-test: slurm $(VENV)/ready
	dpkg --status debootstrap > /dev/null 2>&1 || apt-get -qq install --yes --no-install-recommends debootstrap
	PYTHONPATH=tests $(BIN)/python tests/containers/tree.py

clean-env:
	rm -rf $(VENV)
