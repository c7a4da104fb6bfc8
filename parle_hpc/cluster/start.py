"""The start of MPI: what it and Horovod read from the environment, and whether it sees the ranks that were started."""

import ctypes
import os
import re
import sys
from contextlib import nullcontext

from ..errors import BadInput
from .leftovers import alone, pmix_answers, unset
from .placement import placement
from .waiting import PATIENCE

# what OpenMP and MKL take for a number of threads, or for one at each level of nested loops
THREADS = re.compile(r"\s*\+?0*[1-9]\d*\s*(,.*)?")
# the library itself under the names that MPIs give it, not its C++ and Fortran interfaces
MPI_LIBRARY = re.compile(r"libmpi(ch)?(_(cray|gnu|intel|nvidia|amd|pgi)\w*)?\.so[.\d]*")


def prepare_environment(environment, cores, patience=PATIENCE):
    """What MPI and Horovod read when they start, unless the user has set it to what can work."""
    if "TMPDIR" in environment and not can_be_written(environment["TMPDIR"]):
        # a folder of another job, or of the login node's: without one MPI takes /tmp, as Python does
        del environment["TMPDIR"]
    here = placement(environment).local_size
    if here is not None and here > cores:
        # more ranks than cores: a rank that waits must not keep the core from the one it waits for
        environment["OMPI_MCA_mpi_yield_when_idle"] = "1"
        environment.setdefault("HOROVOD_CYCLE_TIME", "5")
    # over one TCP connection what two ranks send each other at once goes one after the other: docs/benchmarks.md
    environment.setdefault("OMPI_MCA_btl_tcp_links", "2")
    environment.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(patience)))
    # what Horovod joins, and so the order of sums, depends on timing; this keeps single tensors apart, too
    environment["HOROVOD_DISABLE_GROUP_FUSION"] = "1"
    # it is started on an MPI communicator, which gloo, if it was built with it, cannot take
    environment["HOROVOD_CONTROLLER"] = "mpi"
    if environment.get("HOROVOD_CPU_OPERATIONS", "").lower() == "gloo":
        environment["HOROVOD_CPU_OPERATIONS"] = "mpi"


def can_be_written(folder):
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def threads_are_chosen(environment):
    """Whether the user has chosen the number of threads; torch has taken it then."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return any(THREADS.fullmatch(environment.get(name, "")) for name in names)


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
    if not MPI.Is_initialized():
        if os.path.join(os.path.realpath(sys.prefix), "lib") in map(os.path.dirname, mpi_libraries()):
            # Open MPI inside a virtual environment does not find itself without its launcher
            os.environ["OPAL_PREFIX"] = sys.prefix
        if library.startswith("Open MPI") and not pmix_answers(os.environ):
            without_pmix(MPI, here, library)
        else:
            initialise(MPI)
    world = MPI.COMM_WORLD
    size, rank = world.Get_size(), world.Get_rank()
    if (size, rank) != (here.size, here.rank):
        seen = f"but {library} sees {size if size != here.size else f'rank {here.rank} as rank {rank}'}"
        line = f"{started(here)}, {seen}: they do not fit; {right_start(here)}"
        # where MPI sees several, which of them is rank 0 is for it to say
        raise BadInput(line, speaks=None if size == 1 else rank == 0)
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise BadInput(
            "MPI was started without MPI_THREAD_MULTIPLE, which Horovod's thread needs; "
            "take an MPI that has it, or let Topology.split start MPI"
        )
    return world


def without_pmix(MPI, here, library):
    """Start an Open MPI to which nobody can tell its ranks: one process, where nothing says that there are more.

    Without it such an Open MPI ends a task of srun, and what has an mpirun's variables, with pages of its own.
    """
    if here.size > 1 and here.launcher == "Slurm":
        raise BadInput(f"{started(here)} without PMIx, which {library} needs: they do not fit; {right_start(here)}")
    if here.size > 1 and here.launcher == "Open MPI":
        raise BadInput(
            f"OMPI_COMM_WORLD_RANK={here.rank} and OMPI_COMM_WORLD_SIZE={here.size} are of an mpirun that does not "
            f"answer: where it has ended, {unset(here)}; in a container it must be on the same network"
        )
    with alone(os.environ) if here.size == 1 else nullcontext():
        initialise(MPI)


def initialise(MPI):
    """MPI.Init_thread(), in which mpi4py would hold the interpreter: no timer could end what waits there for ranks."""
    function = in_c("MPI_Init_thread")
    if function is None:
        MPI.Init_thread()
        return
    function(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):
        comm.Set_errhandler(MPI.ERRORS_RETURN)


def finalise(MPI):
    """MPI.Finalize(), in the same way."""
    (in_c("MPI_Finalize") or MPI.Finalize)()


def in_c(name):
    """A function of the MPI library, or of a tool that was loaded before it; None where the library is not known."""
    libraries, tools = mpi_libraries(), ctypes.CDLL(None)
    library = tools if hasattr(tools, name) else ctypes.CDLL(libraries[0]) if len(libraries) == 1 else None
    return getattr(library, name, None)


def started(here):
    return "one process was started" if here.launcher == "none" else f"{here.launcher} started {here.size} ranks"


def right_start(here):
    """What to do where MPI and the launcher do not fit."""
    slurm = "srun --mpi=pmix (srun --mpi=list shows what there is)"
    advice = f"start with {slurm if here.launcher == 'Slurm' else 'the mpirun of that MPI'}"
    return advice if here.launcher == "none" else f"{advice}, or, where it has not started this process, {unset(here)}"
