"""A few trials of the soak; `make soak N=100` makes many."""

import random

import pytest
from faults import soak
from helpers.mpi import pass_in_turn

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# seeds whose trial is one blow: all ranks while they save, one rank soon after the first checkpoint
TRIALS = {"parle": 7, "sam, swa": 1}


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """By its kind, what a run leaves that nobody disturbs; of all kinds in one start."""
    work = tmp_path_factory.mktemp("undisturbed")
    commands = [soak.program(kind, work / kind, digits, 4) for kind in TRIALS]
    pass_in_turn(4, *commands, timeout=600, OMP_NUM_THREADS="1")
    return {kind: soak.result(work / kind) for kind in TRIALS}


@pytest.mark.parametrize("kind", TRIALS)
def test_a_run_that_is_killed_and_goes_on_is_the_run_that_was_not(kind, undisturbed, digits, tmp_path):
    soak.trial(kind, tmp_path / "trial", digits, 4, random.Random(TRIALS[kind]))
    assert soak.result(tmp_path / "trial") == undisturbed[kind]
