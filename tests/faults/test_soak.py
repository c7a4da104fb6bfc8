"""A trial of the soak; `make soak N=100` makes many."""

import random

import pytest
from faults import soak
from helpers.mpi import passes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SEED = 7  # of a trial of one blow: all ranks while they save


def test_a_run_that_is_killed_and_goes_on_is_the_run_that_was_not(digits, tmp_path):
    passes(4, *soak.program("parle", tmp_path / "undisturbed", digits, 4), timeout=600, OMP_NUM_THREADS="1")
    soak.trial("parle", tmp_path / "trial", digits, 4, random.Random(SEED))
    assert soak.result(tmp_path / "trial") == soak.result(tmp_path / "undisturbed")
