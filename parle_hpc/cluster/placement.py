"""Which rank is this, as the launcher's environment tells it: a pure function, known before MPI starts."""

from typing import NamedTuple


class Placement(NamedTuple):
    """Rank and size of the world, rank and number of ranks on this node (None where unknown), and who started it."""

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    launcher: str


# In this order: mpirun inside a Slurm allocation leaves Slurm's variables visible, and its own are right.
# (launcher, rank, size, local rank, local size)
LAUNCHERS = (
    (
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None),
    ("PALS", "PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
)


def tasks_on_node(environment):
    """Tasks of this step on this node from SLURM_STEP_TASKS_PER_NODE, e.g. "2(x3),1", or None."""
    counts = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        number, _, times = part.partition("(x")
        if number.isdigit():
            counts += [int(number)] * (int(times.rstrip(")")) if times else 1)
    node = environment.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def placement(environment):
    """Placement from a mapping of environment variables; a plain process is rank 0 of 1.

    SLURM_STEP_NUM_TASKS is set for what srun started, not in the batch script around it.
    """
    for launcher, rank, size, local_rank, local_size in LAUNCHERS:
        if environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            # srun --mpi=pmi2 sets PMI's rank and size, and leaves those of the node to Slurm's variables
            local = environment.get(local_rank, "") or environment.get("SLURM_LOCALID", "")
            count = environment.get(local_size or "", "") or str(tasks_on_node(environment))
            return Placement(
                int(environment[rank]),
                int(environment[size]),
                int(local) if local.isdigit() else 0,
                int(count) if count.isdigit() else None,
                launcher,
            )
    return Placement(0, 1, 0, 1, "none")
