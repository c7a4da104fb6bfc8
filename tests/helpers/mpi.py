"""Programs under a real mpirun."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from helpers.rank import BETWEEN

PROGRAMS = Path(__file__).parents[1] / "programs"
RANK = Path(__file__).with_name("rank.py")
COLD = (sys.executable,)
ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PYTHONPATH": os.pathsep.join([str(PROGRAMS.parent), str(PROGRAMS.parent.parent)]),
}


def of_rank(command):
    """The arguments of a Python that is one rank; a .py name is one of tests/programs, whose failure ends all ranks."""
    command = [str(PROGRAMS / part) if str(part).endswith(".py") else str(part) for part in command]
    return [str(RANK), *command] if command[0].endswith(".py") or "--" in command else command


@cache
def warm():
    """What stands for a Python that begins with torch loaded (warm.py), for this process's tests."""
    folder = tempfile.mkdtemp(prefix="warm-")
    address, program = os.path.join(folder, "ranks"), str(Path(__file__).with_name("warm.py"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, program, address], env=environment, **streams)
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.communicate)
    assert server.stdout.readline() == "ready\n"
    return sys.executable, "-S", "-I", program, address


def mpirun(ranks, *command, python=None, timeout=240, cwd=None, **environment):
    """The finished `mpirun -np ranks python command...`, output as text; the command as of_rank has it.

    python: what the ranks are started with, COLD for one that loads all by itself as users' do; None: warm().
    """
    environment = {**os.environ, **ENVIRONMENT, **environment}
    launcher = shutil.which("mpirun", path=environment["PATH"])
    command = [launcher, "-np", str(ranks), *(python or warm()), *of_rank(command)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment)


def passes(ranks, *command, **options):
    """The output of a program that must end well."""
    result = mpirun(ranks, *command, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pass_in_turn(ranks, *commands, **options):
    """The outputs of commands that must end well, one after the other in one start of the ranks: each takes seconds."""
    first, *others = commands
    joined = [part for command in others for part in ("--", *command)]
    return passes(ranks, *first, *joined, **options).split(f"{BETWEEN}\n")[: len(commands)]


def our_lines(result):
    """Lines that parle_hpc itself wrote on stderr."""
    return [line.partition("parle_hpc: ")[2] for line in result.stderr.splitlines() if "parle_hpc: " in line]


def module(name, *arguments, **options):
    """The finished `python -m name arguments...`, output as text; begins with torch loaded."""
    command = [*warm(), "-m", name, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, **options)
