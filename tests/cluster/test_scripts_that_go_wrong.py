"""Scripts of users in which one rank does something else: right, or one line, and never a wait for a dead rank.

Each case is a function of tests/programs/misuse.py, started as a user's script is; what all ranks raise alike, and what
is right, in one start of each shape.
"""

import json
from functools import cache

import pytest
from helpers.mpi import mpirun, our_lines, pass_in_turn

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SHAPES = {"2x1": (2, 2), "1x2": (2, 1), "2x2": (4, 2), "1x2 in buckets": (2, 1, "buckets")}  # ranks, replicas
DISAGREE, STUCK = 2, 1  # exit statuses

WITH_A_LINE = [
    ("one step fewer", "2x1", DISAGREE, "the number of calls of at_reference is 4 on rank 0, 5 on rank 1"),
    ("one step more", "2x1", DISAGREE, "the number of steps of the optimiser is 10 on rank 0, 11 on rank 1"),
    ("other L", "2x2", DISAGREE, "L is 4 on rank 1, 5 on rank 3"),
    ("other weights at the start", "2x2", DISAGREE, "the weights at the start (call topology.broadcast before"),
    ("alone at the reference", "2x2", STUCK, "rank 3 waiting for the other ranks' shares of x^a"),
    ("alone at the end", "1x2", STUCK, "rank 0 at the end of the script; rank 1 waiting for the other ranks' shares"),
    ("skipped average", "1x2", DISAGREE, "the weights differ between rank 0 and rank 1"),
    ("skipped step", "2x2", DISAGREE, "the weights differ between rank 2 and rank 3"),
    ("skipped batch", "1x2", STUCK, "rank 0 waiting for the other ranks in average_gradients (number 10)"),
    ("leaves", "2x2", STUCK, "rank 2 waiting for the other ranks in average_gradients (number 4); rank 3 at the end"),
    ("skipped batch", "1x2 in buckets", STUCK, "rank 0 waiting for the other ranks in average_gradients (number 10)"),
    ("bad input", "1x2", DISAGREE, "--run.device cuda: torch finds no GPU here"),
    ("broadcasts alone", "2x1", STUCK, "rank 1 waiting for the other ranks in Topology.broadcast (number 1)"),
    ("hvd.init before split", "2x1", DISAGREE, "hvd.init() was called before Topology.split"),
]
WITH_A_TRACEBACK = [
    ("fails", "2x1", "KeyError: 'only here'"),
    ("replica for cross", "2x2", "ValueError: comm must have one rank of each replica"),
    ("state of another replica", "2x1", "ValueError: the state is that of replica 0, and this rank is of replica 1"),
]
RAISED = [
    ("one step more in mid round", "2x1", "the step of the last at_reference is 1 on rank 0, 2 on rank 1"),
    ("one step more before a validation", "2x1", "the number of steps of the optimiser is 6 on rank 0, 7 on"),
    ("other network", "2x1", "the number of weights is 19 on rank 0, 18 on rank 1"),
    ("other shape", "2x1", "the shapes of the parameters differ between rank 0 and rank 1"),
    ("other algorithm", "2x1", "the algorithms, or their ways, differ between rank 0 and rank 1"),
    ("other reference", "2x1", "the algorithms, or their ways, differ between rank 0 and rank 1"),
    ("other weights at the start", "2x1", "the weights at the start (call topology.broadcast before"),
    ("alone at the reference", "2x1", "the number of calls of at_reference is 1 on rank 0, 2 on rank 1"),
    ("other network", "1x2", "the number of their weights is 19 on rank 0, 18 on rank 1"),
    ("other shape", "1x2", "the shapes of the parameters differ between rank 0 and rank 1"),
    ("other weights at the start", "1x2", "the weights at the start (call topology.broadcast before"),
    ("never averaged", "1x2", "a round in which average_gradients was not called"),
    ("skipped backward and average", "1x2", "the number of optimiser steps is 1 on rank 0, 2 on rank 1"),
    ("broadcasts others", "1x2", "broadcast: the ranks do not agree: the number of tensors is 1 on rank 0, 2"),
    ("sparse", "1x2", "RuntimeError: sparse gradients are not supported"),
    ("used up", "1x2", "ValueError: average_gradients was given no tensors; a generator"),
    ("wrapped", "1x2", "TypeError: hvd.DistributedOptimizer cannot wrap Parle; call topology.average_gradients"),
    ("other network", "1x2 in buckets", "the shapes of the parameters differ between rank 0 and rank 1"),
    ("other shape", "1x2 in buckets", "the shapes of the parameters differ between rank 0 and rank 1"),
    ("other weights at the start", "1x2 in buckets", "the weights at the start (call topology.broadcast"),
    ("skipped average", "1x2 in buckets", "the weights differ between rank 0 and rank 1"),
    ("followed by others", "1x2 in buckets", "the number of buckets (every rank or none calls follow_b"),
    ("world for cross", "2x2", "ValueError: comm must have one rank of each replica"),
]
RIGHT = [
    ("as it should be", "2x2"),
    ("world for cross without replica", "2x2"),
    ("skipped backward", "1x2"),
    ("skipped backward", "1x2 in buckets"),
    ("horovods tools", "1x2"),
    ("state of rank 0", "1x2"),
    ("slow is not dead", "2x1"),
    ("masked", "2x2"),
    ("averaged by others", "1x2"),
    ("other branches", "1x2"),
    ("other branches", "1x2 in buckets"),
    ("bfloat16", "1x2"),
    ("loaded", "2x2"),
]


def started(case, shape):
    """The finished script."""
    ranks, *arguments = SHAPES[shape]
    # far less than the patience of 600 s, after which there would be a line about time alone
    return mpirun(ranks, "-m", "programs.misuse", case, *arguments, timeout=200)


@cache
def in_turn(shape):
    """What each rank tells, by case, of those of RIGHT and then of RAISED in this shape, in one start."""
    ranks, *arguments = SHAPES[shape]
    right = [case for case, its in RIGHT if its == shape]
    raised = [case for case, its, _ in RAISED if its == shape]
    commands = [("-m", "programs.misuse", case, *arguments) for case in right]
    commands += [("-m", "programs.misuse", case, *arguments, "raises") for case in raised]
    printed = pass_in_turn(ranks, *commands, timeout=200)
    return {case: json.loads(told) for case, told in zip(right + raised, printed, strict=True)}


@pytest.mark.parametrize(("case", "shape", "status", "line"), WITH_A_LINE)
def test_what_differs_is_said_in_one_line(case, shape, status, line):
    result = started(case, shape)
    lines = our_lines(result)
    assert result.returncode == status, result.stdout + result.stderr
    # where each replica has the fault by itself, both may be quick enough to say so
    assert len(lines) == 1 or (shape == "2x2" and len(lines) == 2), lines
    assert "validated" not in result.stdout
    assert all(line in told for told in lines), lines
    assert "dead" not in lines[0]


@pytest.mark.parametrize(("case", "shape", "last"), WITH_A_TRACEBACK)
def test_what_fails_on_a_rank_ends_all_with_its_traceback(case, shape, last):
    result = started(case, shape)
    assert result.returncode == 1, result.stdout + result.stderr
    assert last in result.stderr
    assert "Traceback" in result.stderr
    assert our_lines(result) == []


@pytest.mark.parametrize(("case", "shape", "line"), RAISED)
def test_what_differs_is_raised_alike_on_all_ranks(case, shape, line):
    everyone = in_turn(shape)[case]
    assert everyone == everyone[:1] * SHAPES[shape][0]
    # a Disagreement is one line and status 2, whatever it says
    assert everyone[0].startswith(line if "Error: " in line else "Disagreement: ")
    assert line in everyone[0]
    assert "dead" not in everyone[0]


@pytest.mark.parametrize(("case", "shape"), RIGHT)
def test_what_looks_wrong_and_is_not_ends_alike_on_all_ranks(case, shape):
    everyone = in_turn(shape)[case]
    ranks, replicas, *_ = SHAPES[shape]
    m = ranks // replicas
    assert len(everyone) == ranks
    assert all(rank["steps"] == everyone[0]["steps"] for rank in everyone)
    assert all(rank["reference"] == everyone[0]["reference"] for rank in everyone)
    for a in range(replicas):
        replica = everyone[a * m : (a + 1) * m]
        assert all(rank["x"] == replica[0]["x"] and rank["y"] == replica[0]["y"] for rank in replica)


def test_a_communicator_over_the_world_couples_the_same_replicas():
    """Each replica is in it m times, which changes no mean but its last bits."""
    cases = in_turn("2x2")
    for mine, theirs in zip(cases["world for cross without replica"], cases["as it should be"], strict=True):
        assert mine["x"] == pytest.approx(theirs["x"], abs=1e-6)
        assert mine["reference"] == pytest.approx(theirs["reference"], abs=1e-6)


def test_weights_that_others_change_reach_the_reference_where_state_is_divided():
    for rank in in_turn("2x2")["masked"]:
        assert rank["reference"][:6] == [0.0] * 6
        assert all(rank["reference"][6:])
    for rank in in_turn("2x2")["loaded"]:
        assert rank["validated"] == [5.0] * 19
        # v_y is kept, as torch's own momentum is, and moves them a little
        assert rank["x"] == pytest.approx([5.0] * 19, abs=0.6)


def test_gradients_of_the_same_parameters_are_averaged():
    """A gradient that a rank does not have counts as zero, and stays None where no rank has it."""
    for shape in ("1x2", "1x2 in buckets"):
        for rank in in_turn(shape)["other branches"]:
            assert rank["gradients"] == [[0.5], [1.0], None]
    for rank in in_turn("1x2")["bfloat16"]:
        assert (rank["gradients"], rank["type"]) == ([1.5] * 3, "torch.bfloat16")
