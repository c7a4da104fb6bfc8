"""Runs with algorithm.pace = time: a replica that is slow, by a clock of the test's, holds nobody up."""

import json

import numpy as np
import pytest
from helpers.mpi import pass_in_turn, passes
from helpers.trainer import events

from parle_hpc.equations import eq_9
from parle_hpc.errors import BadInput
from parle_hpc.settings import load, settle

SECONDS = (1.0, 1.0, 2.0, 3.0)  # of the ranks of two replicas: what counts is the slowest of each
FIRST, GONE_ON, ROUNDS = 3, 6, 14  # of lengths by speeds; of the run that goes on; in all


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """The folder of a run of two replicas of two ranks, which ended after GONE_ON rounds, and went on."""
    folder = tmp_path_factory.mktemp("pace") / "run"
    given = (json.dumps(SECONDS), "--data.path", digits, "--out", folder, "--algorithm.pace", "time")
    commands = [("paced.py", *given, "--replicas", 2, "--schedule.max_rounds", end) for end in (GONE_ON, ROUNDS)]
    pass_in_turn(4, *commands, timeout=600, OMP_NUM_THREADS="1")
    return folder


@pytest.mark.cluster
@pytest.mark.timeout(700)
def test_every_rank_of_a_replica_makes_as_many_steps_and_the_slow_one_fewer(run):
    steps = [json.loads((run / f"steps.{rank}.json").read_text()) for rank in range(4)]
    assert steps[0] == steps[1]
    assert steps[2] == steps[3]
    for mine, length in ((steps[0], 38), (steps[2], 13)):
        assert np.diff([0, *mine]).tolist() == [25] * FIRST + [length] * (ROUNDS - FIRST)


@pytest.mark.cluster
def test_its_metrics_count_what_each_replica_did_and_the_schedule_by_rounds(run):
    rounds = events(run, "round")
    assert [r["mini_batches"] for r in rounds] == [[25, 25]] * FIRST + [[38, 13]] * (ROUNDS - FIRST)
    assert [r["step"] for r in rounds] == [25 * (t + 1) for t in range(ROUNDS)]
    assert rounds[-1]["gamma"] == pytest.approx(eq_9(100.0, ROUNDS - 1, 22, clip=1.0), rel=1e-5)
    assert [e["round"] for e in events(run, "resume")] == [GONE_ON - 1]


@pytest.mark.cluster
def test_it_learns_the_digits(run):
    assert events(run, "validate")[-1]["val_error"] < 2.5


LOOP = """
import torch
from parle_hpc import Parle, Session, Topology
from parle_hpc.errors import BadInput
topology, model = Topology.split(replicas=2), torch.nn.Linear(3, 1)
torch.manual_seed(topology.replica_index)
topology.broadcast(model.parameters())
optimizer = Parle(model.parameters(), lr=0.1, L=4, batches_per_epoch=5, pace="time", comm=topology.cross)
with Session(out="run", topology=topology, model=model, optimizer=optimizer) as session:
    try:
        next(session.steps(40))
    except BadInput as error:
        session.say(str(error))
    for _ in session.rounds(10):
        for _ in range(optimizer.steps_in_round):
            optimizer.zero_grad()
            loss = model(torch.rand(5, 3)).square().mean()
            loss.backward()
            optimizer.step()
            session.loss(loss)
    with optimizer.at_reference():
        session.validated(optimizer.nominal_steps - 1, {"val_loss": model(torch.ones(5, 3)).square().mean()})
assert optimizer.progress == (10, 0)
"""


@pytest.mark.cluster
def test_a_loop_of_ones_own_goes_over_rounds(tmp_path):
    assert "go over rounds(total), and in each make optimizer.steps_in_round" in passes(2, "-c", LOOP, cwd=tmp_path)
    (validated,) = events(tmp_path / "run", "validate")
    assert (validated["step"], validated["round"]) == (40, 9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["name", "entropy_sgd"], "pace time: belongs to parle, not to entropy_sgd; leave it out"),
        (["rho0", "inf"], "pace time: nothing is coupled with --algorithm.rho0 inf; leave one of them out"),
        (["L", "3"], "L 3: must be at least 4 with --algorithm.pace time"),
    ],
)
def test_what_does_not_fit_is_said(given, words):
    with pytest.raises(BadInput) as told:
        settle(load(["--algorithm.pace", "time", f"--algorithm.{given[0]}", given[1]]), 2)
    assert f"--algorithm.{words}" in str(told.value)
