"""Runs with an optimiser inside: they learn, and one that is interrupted goes on bit for bit, or with other ranks."""

import pytest
from helpers.mpi import pass_in_turn
from helpers.trainer import TRAIN, equal, events

COSINE = ["--schedule.kind", "cosine", "--schedule.warmup", 0.1, "--schedule.inner", "true", "--schedule.epochs", 1]
CUT = ["--algorithm.clip", 2, "--data.accumulate", 2, "--data.batch_size", 32, "--run.validate_every", 100]


def settings(name, digits, out, rounds):
    rate = ["--algorithm.inner", name, "--algorithm.inner_lr", 0.002, "--schedule.lr", 0.5, "--algorithm.L", 5]
    given = ["--out", out, "--schedule.max_rounds", rounds, "--data.path", digits]
    return [*TRAIN, *rate, *COSINE, *CUT, *given]


INSIDE = ("adamw", "muon")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """By name and kind (whole, parts) the folder of a run of 10 rounds on 2 x 2 ranks, of which `parts` had a break."""
    folder = tmp_path_factory.mktemp("inner")
    rounds = [(name, kind, last) for name in INSIDE for kind, last in (("whole", 10), ("parts", 6), ("parts", 10))]
    commands = [settings(name, digits, folder / name / kind, last) for name, kind, last in rounds]
    pass_in_turn(4, *commands, timeout=400)
    return folder


@pytest.mark.cluster
@pytest.mark.parametrize("name", INSIDE)
def test_it_learns_and_goes_on_bit_for_bit(runs, name):
    assert equal(runs / name / "whole", runs / name / "parts")
    assert events(runs / name / "whole", "validate")[-1]["val_error"] < 20


@pytest.mark.cluster
def test_it_goes_on_with_other_ranks(runs, digits):
    three = [[*settings(name, digits, runs / name / "parts", 12), "--replicas", "3"] for name in INSIDE]
    for name, printed in zip(INSIDE, pass_in_turn(3, *three, timeout=300), strict=True):
        assert "goes on with 3 x 1 ranks after 2 x 2" in printed
        assert events(runs / name / "parts", "validate")[-1]["val_error"] < 20


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
        (["--schedule.outer", "false"], ["--schedule.outer false", "--schedule.inner true"]),
        (["--algorithm.inner", "adam"], ["--algorithm.inner adam", "adamw"]),
    ],
)
def test_what_does_not_fit_is_said(given, words):
    from parle_hpc.errors import BadInput
    from parle_hpc.settings import load, settle

    with pytest.raises(BadInput) as told:
        settle(load(given), 4)
    assert all(word in str(told.value) for word in words), told.value
