#!/usr/bin/env bash
# What every image gets, in its %post: Debian packages, and in /opt/parle_hpc the set-up that README.md describes.
#
#     install.sh [PACKAGE ...]      # the packages that differ, which are the MPI's
set -euo pipefail

home=/opt/parle_hpc
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# what make train asks a machine for, and certificates for pip
apt-get -qq install --yes --no-install-recommends ca-certificates g++ make python3-dev python3-venv "$@"
rm -rf /var/lib/apt/lists/*

# mpi4py's wheels look for an MPI when they start; compiled here, it has the one that Horovod has
export PIP_NO_BINARY=mpi4py PIP_NO_CACHE_DIR=1 MPICC=mpicc
# a compiler's wrapper that came from PyPI leaves out where its library is
export LDFLAGS="-Wl,-rpath,$home/venv/lib"
PARLE_HPC_CACHE=$(mktemp -d)
export PARLE_HPC_CACHE
# environment.py reads $TORCH and $MPI too
python3 "$home/source/install/environment.py" "$home/venv"
rm -rf "$PARLE_HPC_CACHE"

# read-only later, and for everybody
"$home/venv/bin/python" -m compileall -q "$home/source/parle_hpc"
chmod -R a+rX "$home"
