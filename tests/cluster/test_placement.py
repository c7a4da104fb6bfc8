"""Which rank this is, as each launcher tells it."""

import pytest

from parle_hpc.cluster.placement import placement

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
STEP = {**SLURM, "SLURM_STEP_NUM_TASKS": "4"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
TORCH = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0, 1, "none")),
        # the batch script itself is no rank of a step
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (0, 1, 0, 1, "none")),
        (STEP, (3, 4, 1, None, "Slurm")),
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "5", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"},
            (3, 5, 1, 1, "Slurm"),
        ),
        # mpirun inside a Slurm step
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", **OPEN_MPI}, (5, 8, 2, 4, "Open MPI")),
        ({**STEP, **OPEN_MPI, "PMIX_NAMESPACE": "1204944897", "PMIX_RANK": "5"}, (5, 8, 2, 4, "Open MPI")),
        # srun in a job to which the login shell brought what an mpirun had told it
        ({**STEP, **OPEN_MPI, "PMIX_NAMESPACE": "slurm.pmix.77.0", "PMIX_RANK": "3"}, (3, 4, 1, None, "Slurm")),
        (
            {**STEP, "PMI_RANK": "0", "PMI_SIZE": "1", "PMIX_NAMESPACE": "slurm.pmix.77.0", "PMIX_RANK": "3"},
            (3, 4, 1, None, "Slurm"),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2, "PMI")),
        # srun --mpi=pmi2
        (
            {**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            (5, 8, 1, 4, "PMI"),
        ),
        ({"FLUX_TASK_RANK": "2", "FLUX_JOB_SIZE": "3", "FLUX_TASK_LOCAL_ID": "1"}, (2, 3, 1, None, "Flux")),
        (
            {f"JSM_NAMESPACE_{name}": str(n) for n, name in enumerate(("RANK", "LOCAL_RANK", "LOCAL_SIZE", "SIZE"))},
            (0, 3, 1, 2, "JSM"),
        ),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, (1, 2, 0, None, "MVAPICH")),
        (TORCH, (1, 2, 1, 2, "torchrun or its like")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0, 1, "none")),
        ({"WORLD_SIZE": "4"}, (0, 1, 0, 1, "none")),
        # torchrun inside a step of one task starts several processes, but no ranks
        ({**TORCH, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (1, 2, 1, 2, "torchrun or its like")),
        # several ranks that have such variables too, from a shell or for torch.distributed
        ({**TORCH, **OPEN_MPI}, (5, 8, 2, 4, "Open MPI")),
        (
            {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "0", "HOROVOD_LOCAL_SIZE": "1"},
            (1, 2, 0, 1, "horovodrun --gloo or its like"),
        ),
        # not numbers
        ({"RANK": "", "WORLD_SIZE": "two", "PMI_RANK": "x", "PMI_SIZE": "2"}, (0, 1, 0, 1, "none")),
    ],
)
def test_placement_is_what_the_launcher_says(environment, expected):
    assert placement(environment) == expected
