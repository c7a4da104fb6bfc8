"""A whole run whose mini-batches come as on a GPU is the run that fetches them itself."""

import pytest
from helpers.mpi import pass_in_turn
from helpers.trainer import TRAIN, equal

pytestmark = pytest.mark.cluster


def test_a_run_with_mini_batches_one_ahead_or_from_the_devices_memory_is_the_same(digits, tmp_path):
    given = ("--data.path", digits, "--data.augment", "true", "--data.accumulate", 2, "--schedule.max_rounds", 2)
    given += ("--algorithm.L", 4, "--run.validate_every", 1, "--run.statistics_batches", 3)
    ways = {"plain": TRAIN, "thread": ("as_on_a_gpu.py", "thread"), "resident": ("as_on_a_gpu.py", "resident")}
    told = pass_in_turn(1, *((*command, *given, "--out", tmp_path / way) for way, command in ways.items()))
    for way, output in zip(ways, told, strict=True):
        if way != "plain":
            # of training; two validations' statistics, validation and training; the replica's statistics and validation
            assert output.endswith(f"\n{1 + 2 * 3 + 2} {way == 'thread'}\n")
            assert ("data are there\n" in output) == (way == "resident")
            assert equal(tmp_path / "plain", tmp_path / way)
