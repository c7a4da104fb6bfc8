"""Topology, Horovod and Parle under a real mpirun."""

import json
import os
import subprocess
import sys

import pytest
from helpers.mpi import ENVIRONMENT, mpirun, our_lines
from helpers.namespaces import Cluster, why_not

pytestmark = pytest.mark.cluster


@pytest.mark.skipif(why_not() is not None, reason=f"no hosts as network namespaces: {why_not()}")
def test_gradients_leave_during_the_backward_pass_where_a_replica_spans_hosts():
    with Cluster(2) as cluster:
        result = cluster.mpirun(4, "spans.py")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [
        [[0, 0, 2, 2], [[2, [1.5]]] * 4],
        [[0, 0, 2, 2], [[0, [0.5]]] * 2 + [[0, [2.5]]] * 2],
    ]


def test_ranks_that_do_not_divide_are_refused():
    result = mpirun(3, "groups.py", 2)
    assert result.returncode != 0
    assert "--replicas 2 does not divide 3 ranks; possible here: 1, 3" in result.stderr


def test_a_wrong_pmi_ends_with_one_line_and_not_as_many_worlds(tmp_path):
    """Two processes that Slurm counts as 2 tasks and MPI, started without its launcher, as 2 worlds of 1."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "SLURM"))}
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
    outputs = [task.communicate(timeout=120) for task in tasks]
    lines = [line for _, errors in outputs for line in errors.splitlines() if line.startswith("parle_hpc:")]
    assert [task.returncode for task in tasks] == [2, 2]
    assert len(lines) == 1
    assert "Slurm started 2 ranks" in lines[0]
    assert "srun --mpi=pmix" in lines[0]
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
