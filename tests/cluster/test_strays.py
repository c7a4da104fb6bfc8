"""Variables that do not fit what runs: what the doctor says of each."""

import os

import pytest
from helpers.mpi import COLD, mpirun
from helpers.planted import DOCTOR, changes, table

from parle_hpc.cluster.diagnosis import findings, strays
from parle_hpc.cluster.placement import placement

SLURM = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "PMIX_NAMESPACE": "slurm.pmix.7.0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "9"}


def found(environment, threads=2, job=None):
    return strays.find(environment, placement(environment), threads, job, os.path.isdir)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM,
        OPEN_MPI,
        # mpirun inside steps of every kind
        {**OPEN_MPI, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {**OPEN_MPI, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3", "PMI_RANK": "1", "PMI_SIZE": "3"},
        # a script that tells torch.distributed of the same ranks, and a shell in which one process was tried
        {**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2"},
        {**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "1"},
        {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1,4", "HOROVOD_CONTROLLER": "mpi", "TMPDIR": "/"},
    ],
)
def test_what_fits_is_not_spoken_of(environment):
    assert found(environment) == []


@pytest.mark.parametrize(
    ("environment", "line", "names"),
    [
        (
            {**SLURM, "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
            "OMPI_COMM_WORLD_RANK=3 and OMPI_COMM_WORLD_SIZE=8 are of another start, by Open MPI, and not of the 2",
            "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE",
        ),
        (
            {**OPEN_MPI, "RANK": "1", "WORLD_SIZE": "4"},
            "RANK=1 and WORLD_SIZE=4 are of torchrun or its like",
            "RANK WORLD_SIZE",
        ),
        (
            {**OPEN_MPI, "PMI_RANK": "5", "PMI_SIZE": "8"},
            "PMI_RANK=5 and PMI_SIZE=8 are of another start, by PMI",
            "PMI_RANK PMI_SIZE",
        ),
        ({"OMP_NUM_THREADS": ""}, "OMP_NUM_THREADS='' is no number of threads", "OMP_NUM_THREADS"),
        ({"MKL_NUM_THREADS": "all"}, "MKL_NUM_THREADS='all' is no number of threads", "MKL_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "64"}, "OMP_NUM_THREADS=64 is more than the 2 of its node's cores", "OMP_NUM_THREADS"),
        ({"HOROVOD_CONTROLLER": "gloo"}, "HOROVOD_CONTROLLER=gloo: Horovod is started on MPI", "HOROVOD_CONTROLLER"),
        ({"HOROVOD_CPU_OPERATIONS": "GLOO"}, "HOROVOD_CPU_OPERATIONS=gloo", "HOROVOD_CPU_OPERATIONS"),
        ({"SLURM_ARRAY_JOB_ID": "41"}, "SLURM_ARRAY_JOB_ID=41 is of an array", "SLURM_ARRAY_JOB_ID"),
        (ARRAY, "SLURM_ARRAY_JOB_ID=41 is of an array, of which this is no job", " ".join(ARRAY)),
    ],
)
def test_what_does_not_fit_gets_a_line(environment, line, names):
    (said,) = found(environment, job="77")
    assert said.startswith(line)
    assert said.endswith(f"; unset {names}")


def test_a_folder_that_is_not_there():
    (line,) = found({"TMPDIR": "/proc/none"})
    assert line.startswith("TMPDIR=/proc/none: no folder that can be written on ")
    assert "unset TMPDIR" in line


@pytest.mark.parametrize("job", ["41_3", "41_3.2"])
def test_an_array_that_is_the_jobs(job):
    assert found(ARRAY, job=job) == []


def test_openmp_binds_ranks_to_one_core():
    assert strays.binding({"OMP_PROC_BIND": "false", "KMP_AFFINITY": "disabled"}) == []
    names = strays.binding({"OMP_PROC_BIND": "close", "GOMP_CPU_AFFINITY": "0"})
    rank = findings.Rank(0, "a", frozenset({0}), 8, "cpu", {})
    (line,) = findings.shared_cores([rank, rank], "Open MPI", names)
    assert "; unset OMP_PROC_BIND GOMP_CPU_AFFINITY; if that does not help, start with mpirun --bind-to none" in line


@pytest.mark.cluster
def test_the_doctor_says_so(tmp_path):
    """With all of them it trains all the same."""
    left = {"RANK": "0", "WORLD_SIZE": "8", "HOROVOD_CONTROLLER": "gloo", "OMP_NUM_THREADS": "", "PMI_RANK": "1"}
    left |= {"PMI_SIZE": "8", "SLURM_ARRAY_TASK_ID": "3"}
    result = mpirun(2, *DOCTOR, "--out", tmp_path, python=COLD, **left)
    assert result.returncode == 1, result.stderr
    unset = ["PMI_RANK PMI_SIZE", "RANK WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "OMP_NUM_THREADS", "HOROVOD_CONTROLLER"]
    lines = [line for line in changes(result) if "take turns" not in line]
    assert [line.rpartition("; unset ")[2] for line in lines] == unset
    # a reduction was measured
    assert len(table(result, "mean of tensors")) == 2
