"""Topology, Horovod and Parle under a real mpirun."""

import json
import os
import subprocess
import sys
import time

import pytest
from helpers.mpi import ENVIRONMENT, mpirun, our_lines, passes


@pytest.mark.parametrize(("ranks", "replicas"), [(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (4, 1)])
def test_groups_gradients_and_broadcast(ranks, replicas):
    m = ranks // replicas
    everyone = json.loads(passes(ranks, "groups.py", replicas))
    assert len(everyone) == ranks
    for rank, seen in enumerate(everyone):
        group = list(range(rank // m * m, rank // m * m + m))
        mean = sum(group) / m
        assert (seen["replica_index"], seen["place"]) == divmod(rank, m)
        assert seen["replica"] == group
        assert seen["cross"] == list(range(rank % m, ranks, m))
        assert seen["gradients"] == [[mean], [10 * mean], None]
        assert seen["broadcast"] == [[0.0], [0.0], [1.0], [0.0]]
        assert seen["threads"] == max(1, int(len(os.sched_getaffinity(0)) / ranks + 1e-9))


def equals_the_oracle(n, m, problem, inside, *references):
    """Whether n x m ranks do with each reference what the oracle does."""
    return passes(n * m, "against_oracle.py", n, problem, inside, *references).split() == list(references)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_parle_under_mpi_is_one_process(n, m):
    assert equals_the_oracle(n, m, "quadratic", "gradients", "current", "lagged", "average")


@pytest.mark.parametrize(("n", "m"), [(2, 1), (1, 2), (2, 2)])
def test_lenet_under_mpi_is_one_process(n, m):
    assert equals_the_oracle(n, m, "lenet", "gradients", "current")


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 2)])
def test_workers_under_mpi_are_one_process(n, m):
    assert equals_the_oracle(n, m, "quadratic", "workers", "current")


@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 2), (3, 1)])
def test_elastic_sgd_under_mpi_is_one_process(n, m):
    assert equals_the_oracle(n, m, "quadratic", "elastic", "scoping", "plain")


def test_ranks_that_do_not_divide_are_refused():
    result = mpirun(3, "groups.py", 2)
    assert result.returncode != 0
    assert "--replicas 2 does not divide 3 ranks; possible here: 1, 3" in result.stderr


def test_a_wrong_pmi_ends_with_one_line_and_not_as_many_worlds(tmp_path):
    """Two processes that Slurm counts as 2 tasks and MPI, started without its launcher, as 2 worlds of 1."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "SLURM"))}
    started = time.monotonic()
    command = [sys.executable, "-m", "parle_hpc.train", "--replicas", "2"]
    tasks = [
        subprocess.Popen(
            command,
            env={
                **outside,
                **ENVIRONMENT,
                "SLURM_PROCID": str(rank),
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_LOCALID": "0",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=60) for task in tasks]
    lines = [line for _, errors in outputs for line in errors.splitlines() if line.startswith("parle_hpc:")]
    assert [task.returncode for task in tasks] == [2, 2]
    assert len(lines) == 1
    assert "Slurm started 2 ranks" in lines[0]
    assert "srun --mpi=pmix" in lines[0]
    assert time.monotonic() - started < 60
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_on_one_rank_ends_at_once_everywhere():
    result = mpirun(2, "fails.py", timeout=60)
    assert result.returncode != 0
    assert "AssertionError: rank 1 fails" in result.stderr
    assert "went on" not in result.stdout


def test_a_rank_that_dies_ends_the_job():
    result = mpirun(2, "dies.py", timeout=60)
    assert result.returncode != 0
    assert "rank 1 leaves" in result.stdout
    assert our_lines(result) == []
