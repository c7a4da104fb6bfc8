"""The doctor under srun on 2 hosts: a sound machine, and four planted faults."""

import os
import re
import sys

import pytest
from helpers.planted import DOCTOR, at_once, changes, on_core, table, two_mpi_libraries
from helpers.slurm_cluster import SlurmCluster, needs_slurm

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), needs_slurm]
CORES = os.sched_getaffinity(0)


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster(2) as cluster:
        yield cluster


def srun(cluster, *command, nodes=2, tasks=1, mpi="pmix", **environment):
    """The finished `srun python command...` with so many tasks on each of so many nodes."""
    shape = (f"--mpi={mpi}", f"--nodes={nodes}", f"--ntasks-per-node={tasks}")
    return cluster.command("srun", *shape, sys.executable, *command, check=False, timeout=200, **environment)


def the_change(result):
    """What the doctor says is to be changed: one line, besides that of a machine with one core."""
    assert result.returncode == 1, result.stdout + result.stderr
    found = [line for line in changes(result) if len(CORES) > 1 or "take turns" not in line]
    assert len(found) == 1, found
    return found[0].partition(". ")[2]


def test_a_sound_machine(cluster, tmp_path):
    result = srun(cluster, *DOCTOR, "--out", tmp_path, tasks=2)
    assert result.returncode == (len(CORES) < 2), result.stdout + result.stderr
    everyone = [["0", "0", "host1"], ["1", "0", "host1"], ["2", "1", "host2"], ["3", "1", "host2"]]
    assert [row[:3] for row in table(result, "rank")] == everyone
    assert [row[:2] for row in table(result, "output folder on")] == [["host1", "yes"], ["host2", "yes"]]
    software = dict(row for row in table(result, "software") if len(row) == 2)
    assert software["launcher"].endswith("4 ranks")
    # a reduction was measured inside a replica and across
    assert [len(row) for row in table(result, "mean of tensors")] == [5, 5]


def test_the_wrong_pmi(cluster, tmp_path):
    line = the_change(srun(cluster, *at_once("--out", tmp_path), mpi="none"))
    assert line.startswith("Slurm started 2 ranks without PMIx")
    assert "srun --mpi=pmix" in line


def test_two_mpis(cluster, tmp_path):
    planted, both = two_mpi_libraries(tmp_path)
    line = the_change(srun(cluster, *at_once("--out", tmp_path), **planted))
    assert line.startswith(f"mpi4py and Horovod load different MPI libraries: {' and '.join(both)}; ")


def test_all_ranks_on_one_core(cluster, tmp_path):
    core = min(CORES)
    result = srun(cluster, *on_core(core, *DOCTOR, "--out", tmp_path), nodes=1, tasks=2)
    assert result.returncode == 1
    (line,) = changes(result)
    # the job before may not have left the first host yet
    assert re.search(rf"on host\d take turns on core {core} of its", line)
    assert ("--cpus-per-task" in line) == (os.cpu_count() > 1)


def test_a_folder_that_is_not_shared(cluster, tmp_path):
    cluster.hosts[1]("mount", "-t", "tmpfs", "tmpfs", tmp_path)
    line = the_change(srun(cluster, *DOCTOR, "--out", tmp_path))
    assert line.startswith(f"the output folder {tmp_path} is not shared: the one that rank 0 on host1 sees is another")
    assert "on host2; give a folder on a file system that all nodes mount: --out FOLDER" in line
