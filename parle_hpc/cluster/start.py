"""The start of MPI: what it and Horovod read from the environment, and whether it sees the ranks that were started."""

import os
import re
import sys

from ..errors import BadInput
from .placement import placement
from .waiting import PATIENCE

# the library itself under the names that MPIs give it, not its C++ and Fortran interfaces
MPI_LIBRARY = re.compile(r"libmpi(ch)?(_(cray|gnu|intel|nvidia|amd|pgi)\w*)?\.so[.\d]*")


def prepare_environment(environment, cores, patience=PATIENCE):
    """What MPI and Horovod read when they start, unless the user has set it."""
    if os.path.exists(os.path.join(sys.prefix, "lib", "libmpi.so.40")):
        # Open MPI inside a virtual environment does not find itself without its launcher
        environment.setdefault("OPAL_PREFIX", sys.prefix)
    here = placement(environment).local_size
    if here is not None and here > cores:
        # more ranks than cores: a rank that waits must not keep the core from the one it waits for
        environment["OMPI_MCA_mpi_yield_when_idle"] = "1"
        environment.setdefault("HOROVOD_CYCLE_TIME", "5")
    environment.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(patience)))


def mpi_libraries():
    """Paths of the MPI libraries that are loaded into this process."""
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/libmpi" in line}
    return sorted({os.path.realpath(path) for path in mapped if MPI_LIBRARY.fullmatch(os.path.basename(path))})


def start(MPI, here):
    """Start MPI, unless the program has done so; the communicator of all ranks.

    Raises BadInput where MPI counts other ranks than the launcher, or cannot serve Horovod's thread.
    """
    library = MPI.Get_library_version().split(",")[0].strip()
    slurm = "srun --mpi=pmix (srun --mpi=list shows what there is)"
    right = f"they do not fit; start with {slurm if here.launcher == 'Slurm' else 'the mpirun of that MPI'}"
    if here.launcher == "Slurm" and library.startswith("Open MPI") and "PMIX_RANK" not in os.environ:
        # Open MPI would not come back from its start: it ends the process there, with a page of its own from each rank
        raise BadInput(f"Slurm started {here.size} ranks without PMIx, which {library} needs: {right}")
    if not MPI.Is_initialized():
        MPI.Init_thread()
    world = MPI.COMM_WORLD
    if world.Get_size() != here.size:
        raise BadInput(f"{here.launcher} started {here.size} ranks, but {library} sees {world.Get_size()}: {right}")
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise BadInput(
            "MPI was started without MPI_THREAD_MULTIPLE, which Horovod's thread needs; "
            "take an MPI that has it, or let Topology.split start MPI"
        )
    return world
