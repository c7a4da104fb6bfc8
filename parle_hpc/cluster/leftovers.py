"""What the environment says of ranks, and nothing of MPI stands behind: of other launchers, or left over in a shell."""

import os
import re
from contextlib import contextmanager

from ..errors import BadInput
from .placement import STRANGERS, VARIABLES, claim, placement

LISTENS = "0A"  # a socket's state in /proc/net/tcp
ADDRESS = re.compile(r"tcp[46]://.*:(\d+)$")


def launched(environment):
    """placement(environment) of a process that is to be a rank of MPI.

    Raises BadInput where it was started, if at all, by what starts no ranks of MPI, or by one of several mpiruns.
    """
    here = placement(environment)
    if here.launcher in STRANGERS:
        rank, size = VARIABLES[here.launcher][:2]
        raise BadInput(
            f"{rank}={here.rank} and {size}={here.size} are of {here.launcher}, which starts no ranks of MPI; start "
            f"with mpirun -np {here.size}, or srun --mpi=pmix --ntasks={here.size}; where nothing has started "
            f"{here.size} processes, {unset(here)}"
        )
    task = claim(environment, "Slurm")
    if here.launcher == "Open MPI" and task is not None and is_one_of_several_mpiruns(environment, task):
        raise BadInput(
            f"task {task.rank} of {task.size} that srun has started is an mpirun, and so may be each of them: their "
            "ranks know nothing of one another; start with mpirun alone, or with srun --mpi=pmix alone",
            speaks=here.rank == 0 and task.rank == 1,
        )
    return here


def unset(here):
    """The command after which nobody takes this process for a rank of here.launcher."""
    names = [*VARIABLES[here.launcher][:2]]
    if here.launcher == "Open MPI":
        names = [names[0], "PMIX_RANK"]
    return f"unset {' '.join(names)}"


def is_left_over(environment, here):
    """Whether `here`, a Placement, is of a launcher that certainly does not run this process, or may not."""
    return (
        here.launcher in STRANGERS
        or (here.launcher == "Open MPI" and not pmix_answers(environment))
        or (here.launcher == "Slurm" and not is_task(environment))
    )


def all_end_with_one(environment, here):
    """Whether the launcher is known to end all ranks once one has left with a status that is not 0."""
    return here.launcher == "Open MPI" or environment.get("SLURM_KILL_BAD_EXIT") == "1"


def is_one_of_several_mpiruns(environment, task):
    """Whether a rank's mpirun was started as a task of srun, but not as the first, in which it may be alone."""
    daemon, mpirun = (environment.get(f"OMPI_MCA_orte_{name}_uri") for name in ("local_daemon", "hnp"))
    # what mpirun starts by srun on other nodes is a task too, and has another daemon
    return task.rank > 0 and mpirun is not None and daemon == mpirun and is_task(environment)


def pmix_answers(environment):
    """Whether a server of PMIx, by which an Open MPI learns of its ranks, is there for this process."""
    if "PMIX_RANK" not in environment:
        return False
    addresses = [ADDRESS.search(value) for name, value in environment.items() if name.startswith("PMIX_SERVER_URI")]
    ports = {int(found[1]) for found in addresses if found}
    heard = listening()
    return not ports or heard is None or bool(ports & heard)


def listening():
    """Ports of this host on which somebody listens, or None where that cannot be known."""
    ports = None
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            with open(table) as lines:
                rows = [line.split() for line in lines][1:]
            ports = (ports or set()) | {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENS}
    return ports


def is_task(environment):
    """Whether this process may be, or descend from, the task that Slurm's variables speak of."""
    task, process = environment.get("SLURM_TASK_PID", ""), os.getpid()
    while task.isdigit() and process > 1 and process != int(task):
        try:
            with open(f"/proc/{process}/stat") as stat:
                process = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            # another user's, which a task of this one's does not descend from
            break
    return not task.isdigit() or process == int(task)


@contextmanager
def alone(environment):
    """Inside it an Open MPI starts as one process, whatever launcher or step of srun the environment speaks of."""
    for name in list(environment):
        if name.startswith(("OMPI_MCA_ess", "OMPI_MCA_orte_", "PMIX_SERVER_", "PMIX_NAMESPACE", "PMIX_RANK")):
            del environment[name]
    # by this variable it takes itself for a task that srun has started for MPI, and by none other
    step = environment.pop("SLURM_STEP_ID", None)
    try:
        yield
    finally:
        if step is not None:
            environment["SLURM_STEP_ID"] = step
