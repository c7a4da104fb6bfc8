"""Runs with an optimiser inside: they learn, and one that is interrupted goes on bit for bit, or with other ranks."""

import pytest
from helpers.mpi import mpirun, pass_in_turn
from helpers.trainer import TRAIN, equal, events

COSINE = ["--schedule.kind", "cosine", "--schedule.warmup", 0.1, "--schedule.inner", "true", "--schedule.epochs", 1]
CUT = ["--algorithm.clip", 2, "--data.accumulate", 2, "--run.validate_every", 100]


def settings(name, digits, out, rounds):
    rate = ["--algorithm.inner", name, "--algorithm.inner_lr", 0.002, "--schedule.lr", 0.5, "--algorithm.L", 5]
    given = ["--out", out, "--schedule.max_rounds", rounds, "--data.path", digits]
    return [*TRAIN, *rate, *COSINE, *CUT, *given]


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_it_learns_and_goes_on(tmp_path, digits, name):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs = [settings(name, digits, whole, 10), settings(name, digits, parts, 6), settings(name, digits, parts, 10)]
    pass_in_turn(4, *runs, timeout=400)
    assert equal(whole, parts)
    assert events(whole, "validate")[-1]["val_error"] < 20
    other = mpirun(3, *settings(name, digits, parts, 12), "--replicas", "3", timeout=300)
    assert other.returncode == 0, other.stderr
    assert "goes on with 3 x 1 ranks after 2 x 2" in other.stdout
    assert events(parts, "validate")[-1]["val_error"] < 20


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--algorithm.inner", "adamw"], ["--algorithm.inner adamw", "--algorithm.inner_lr"]),
        (
            ["--algorithm.inner", "adamw", "--algorithm.inner_lr", "1e-3", "--schedule.lr", "1"],
            ["--schedule.lr 1", "8c"],
        ),
        (["--algorithm.inner", "muon", "--algorithm.name", "sgd"], ["--algorithm.inner muon", "not to sgd"]),
        (["--schedule.inner", "true"], ["--schedule.inner true", "--algorithm.inner"]),
        (["--algorithm.inner", "adam"], ["--algorithm.inner adam", "adamw"]),
    ],
)
def test_what_does_not_fit_is_said(given, words):
    from parle_hpc.errors import BadInput
    from parle_hpc.settings import load, settle

    with pytest.raises(BadInput) as told:
        settle(load(given), 4)
    assert all(word in str(told.value) for word in words), told.value
