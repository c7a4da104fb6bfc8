"""The doctor's report, and faults for it to find."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.mpi import ENVIRONMENT

DOCTOR = ("-m", "parle_hpc.doctor")


def changes(result):
    """The lines below "What to change"."""
    _, _, lines = result.stdout.partition("What to change\n")
    return lines.splitlines()


def table(result, first):
    """The rows of the printed table whose first heading is `first`, cut at runs of two blanks."""
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{first}  "))
    rows = [line.split("  ") for line in lines[start + 2 : lines.index("", start)]]
    return [[cell.strip() for cell in row if cell.strip()] for row in rows]


def alone(*command, **environment):
    """One process without a launcher."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "SLURM"))}
    environment = {**outside, **ENVIRONMENT, **environment}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, env=environment)


def two_mpi_libraries(folder):
    """Horovod, byte for byte, but linked to a copy of the MPI library that has another name.

    (environment, in which mpi4py and this Horovod are found; paths of both libraries)
    """
    asks = "from parle_hpc.cluster import start, topology; topology.load(); print(*start.mpi_libraries())"
    library = Path(alone("-c", asks).stdout.strip())
    old, new = library.name.encode(), library.name[:-2].encode() + b"99"
    other = folder / new.decode()
    other.write_bytes(library.read_bytes().replace(old + b"\0", new + b"\0"))
    asks = "import importlib.util; print(importlib.util.find_spec('horovod').submodule_search_locations[0])"
    shutil.copytree(alone("-c", asks).stdout.strip(), folder / "horovod")
    for extension in (folder / "horovod" / "torch").glob("mpi_lib*.so"):
        extension.write_bytes(extension.read_bytes().replace(old + b"\0", new + b"\0"))
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(folder), str(library.parent)]),
    }
    return environment, sorted([str(library), str(other)])


def on_core(core, *command):
    """A Python command, as arguments of a Python, that has one core to run on."""
    command = [sys.executable, *map(str, command)]
    return "-c", f"import os; os.sched_setaffinity(0, {{{core}}}); os.execv({command[0]!r}, {command!r})"


def hurried(step, *arguments):
    """The doctor, as arguments of a Python: the steps that begin so, which must hang, have a fortieth of their time."""
    program = (
        "from parle_hpc import doctor; supervised = doctor.supervised\n"
        "def hurried(rank):\n"
        "    step = supervised(rank)\n"
        f"    return lambda what, bound, advice: step(what, bound / (40 if what.startswith({step!r}) else 1), advice)\n"
        "doctor.supervised = hurried; doctor.main()"
    )
    return "-c", program, *map(str, arguments)


def at_once(*arguments, before=""):
    """The doctor, as arguments of a Python: with something wrong this rank does not wait for rank 0 to say so."""
    program = (
        f"{before}; import types; from parle_hpc import doctor\n"
        "doctor.time = types.SimpleNamespace(sleep=lambda seconds: None); doctor.main()"
    )
    return "-c", program.removeprefix("; "), *map(str, arguments)
