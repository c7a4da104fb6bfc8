"""Runs of SAM and with averaged weights: they learn, and say what they keep."""

import pytest
from helpers.mpi import pass_in_turn, passes
from helpers.trainer import TRAIN, equal, events

from parle_hpc.errors import BadInput
from parle_hpc.settings import load, settle

pytestmark = pytest.mark.timeout(700)

PASSES = ("--schedule.epochs", 11.4)  # 11 rounds
RUNS = {
    "sam": ("--algorithm.name", "sam", *PASSES),
    "sgd": ("--algorithm.name", "sgd", *PASSES),
    "sgd, swa": ("--algorithm.name", "sgd", *PASSES, "--algorithm.average", "swa"),
    "sgd, ema": ("--algorithm.name", "sgd", *PASSES, "--algorithm.average", "ema"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """By name a run's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("averages")
    given = [(*TRAIN, "--data.path", digits, "--out", folder / name, *settings) for name, settings in RUNS.items()]
    printed = pass_in_turn(1, *given, timeout=600, OMP_NUM_THREADS="1")
    return {name: (folder / name, text) for name, text in zip(RUNS, printed, strict=True)}


@pytest.mark.cluster
@pytest.mark.parametrize("name", RUNS)
def test_it_learns_the_digits(runs, name):
    folder, _ = runs[name]
    assert events(folder, "validate")[-1]["val_error"] < 2.5


@pytest.mark.cluster
def test_an_average_changes_what_is_kept_and_nothing_of_the_training(runs):
    folder, _ = runs["sgd"]
    for average in ("swa", "ema"):
        other, printed = runs[f"sgd, {average}"]
        assert f"sgd, weights averaged by {average}: 1 replica x 1 rank" in printed
        one, last = (events(run, "validate")[-1] for run in (folder, other))
        assert one["replica_error"] == last["replica_error"]
        assert one["spread"] == 0 < last["spread"]
        assert not equal(folder, other)
    # before it begins the weights are their own reference
    first, *_, last = events(runs["sgd, swa"][0], "validate")
    assert first["spread"] == 0 < last["spread"]


LOOP = """
import torch
from parle_hpc import SAM, Session, Topology
from parle_hpc.algorithms.averaged import Averaged
topology, model = Topology.split(replicas=1), torch.nn.Linear(3, 1)
optimizer = Averaged(SAM(model.parameters(), lr=0.1), "ema")
with Session(out="run", topology=topology, model=model, optimizer=optimizer) as session:
    for step in session.steps(50):
        batch = torch.rand(5, 3)
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        with optimizer.perturbed():
            model(batch).square().mean().backward()
        topology.average_gradients(model.parameters())
        optimizer.step()
        session.loss(loss)
    session.validated(step, {"val_loss": loss})
"""


@pytest.mark.cluster
def test_a_loop_of_ones_own_has_them_too(tmp_path):
    passes(1, "-c", LOOP, cwd=tmp_path)
    (validated,) = events(tmp_path / "run", "validate")
    # nobody has said how many mini-batches a pass has
    assert (validated["step"], validated["passes"]) == (50, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--algorithm.average_decay", "0.5"], ["--algorithm.average_decay 0.5", "average ema, not to none"]),
        (
            ["--algorithm.average_start", "0.5", "--algorithm.average", "ema"],
            ["--algorithm.average_start 0.5", "average swa, not to ema"],
        ),
        (["--algorithm.average", "mean"], ["--algorithm.average mean", "ema"]),
        (["--algorithm.average_start", "1", "--algorithm.average", "swa"], ["--algorithm.average_start 1", "less"]),
        (["--algorithm.ascent", "0"], ["--algorithm.ascent 0", "greater than 0"]),
        (["--algorithm.name", "sam", "--replicas", "2"], ["--replicas 2", "sam is data-parallel"]),
        (["--algorithm.name", "sam", "--algorithm.inside", "workers"], ["--algorithm.inside workers", "not to sam"]),
    ],
)
def test_what_does_not_fit_is_said(given, words):
    with pytest.raises(BadInput) as told:
        settle(load(given), 4)
    assert all(word in str(told.value) for word in words), told.value
