"""Which rank is this, as the launcher's environment tells it: pure functions, known before MPI starts."""

from typing import NamedTuple

from ..errors import BadInput


class Placement(NamedTuple):
    """Rank and size of the world, rank and number of ranks on this node (None where unknown), and who started it."""

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    launcher: str


class Variables(NamedTuple):
    """Names of the variables in which a launcher tells a Placement, as far as it does."""

    rank: str
    size: str
    local_rank: str = ""
    local_size: str = ""


# In this order: mpirun inside a Slurm allocation leaves Slurm's variables visible, and its own are right.
LAUNCHERS = {
    "Open MPI": Variables(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": Variables(
        "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"
    ),
    "JSM": Variables(
        "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"
    ),
    "PMI": Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Flux": Variables("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    "Slurm": Variables("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "PALS": Variables("PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
}
# Those whose processes never are the ranks of an MPI
STRANGERS = {
    "torchrun or its like": Variables("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "horovodrun --gloo or its like": Variables(
        "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"
    ),
}
VARIABLES = LAUNCHERS | STRANGERS


def tasks_on_node(environment):
    """Tasks of this step on this node from SLURM_STEP_TASKS_PER_NODE, e.g. "2(x3),1", or None."""
    counts = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        number, _, times = part.partition("(x")
        if number.isdigit():
            counts += [int(number)] * (int(times.rstrip(")")) if times else 1)
    node = environment.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def number(environment, name):
    """The value of a variable where it is a whole number, else None."""
    text = environment.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def claim(environment, launcher):
    """The Placement in a launcher's variables, or None.

    SLURM_STEP_NUM_TASKS is set for what srun started, not in the batch script around it.
    """
    names = VARIABLES[launcher]
    rank, size = number(environment, names.rank), number(environment, names.size)
    if rank is None or size is None:
        return None
    local, count = number(environment, names.local_rank), number(environment, names.local_size)
    if launcher in ("Slurm", "PMI"):
        # srun --mpi=pmi2 sets PMI's rank and size, and leaves those of the node to Slurm's variables
        local = number(environment, "SLURM_LOCALID") if local is None else local
        count = tasks_on_node(environment) if count is None else count
    return Placement(rank, size, local or 0, count, launcher)


def claims(environment):
    """What each launcher's variables tell, a list of Placements, of which the first is the one to believe."""
    # of what a login shell brought into a job srun's own server of PMIx knows nothing
    by_srun = environment.get("PMIX_NAMESPACE", "").startswith("slurm.")
    order = sorted(LAUNCHERS, key=lambda launcher: not (by_srun and launcher == "Slurm"))
    mpi = [told for launcher in order if (told := claim(environment, launcher))]
    others = [told for launcher in STRANGERS if (told := claim(environment, launcher)) and told.size > 1]
    # one rank may have started them; several were not started by them
    return mpi + others if mpi and mpi[0].size > 1 else others + mpi


def placement(environment):
    """Placement from a mapping of environment variables; a plain process is rank 0 of 1."""
    return next(iter(claims(environment)), Placement(0, 1, 0, 1, "none"))


def divide(size: int, replicas: int) -> int:
    """Ranks in a replica, m. Raises BadInput where `size` ranks do not divide into `replicas`."""
    if replicas < 1 or size % replicas:
        right = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise BadInput(
            f"--replicas {replicas} does not divide {size} rank{'s' * (size > 1)}; possible here: {right}; "
            f"or start a multiple of {replicas} ranks"
        )
    return size // replicas
