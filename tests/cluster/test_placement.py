"""Which rank this is, as each launcher tells it."""

import pytest

from parle_hpc.cluster.placement import placement

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0, 1, "none")),
        # the batch script itself is no rank of a step
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (0, 1, 0, 1, "none")),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, (3, 4, 1, None, "Slurm")),
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "5", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"},
            (3, 5, 1, 1, "Slurm"),
        ),
        # mpirun inside a Slurm step
        (
            {
                **SLURM,
                "SLURM_STEP_NUM_TASKS": "1",
                "OMPI_COMM_WORLD_RANK": "5",
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_LOCAL_RANK": "2",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
            },
            (5, 8, 2, 4, "Open MPI"),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2, "PMI")),
        # srun --mpi=pmi2
        (
            {**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            (5, 8, 1, 4, "PMI"),
        ),
    ],
)
def test_placement_is_what_the_launcher_says(environment, expected):
    assert placement(environment) == expected
