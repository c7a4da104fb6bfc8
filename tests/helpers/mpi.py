"""Programs under a real mpirun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "programs"
ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PYTHONPATH": os.pathsep.join([str(PROGRAMS.parent), str(PROGRAMS.parent.parent)]),
}


def mpirun(ranks, *command, timeout=240, cwd=None, **environment):
    """The finished `mpirun -np ranks python command...`, output as text; a .py name is one of tests/programs."""
    command = [str(PROGRAMS / part) if str(part).endswith(".py") else str(part) for part in command]
    environment = {**os.environ, **ENVIRONMENT, **environment}
    launcher = shutil.which("mpirun", path=environment["PATH"])
    command = [launcher, "-np", str(ranks), sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment)


def passes(ranks, *command, **options):
    """The output of a program that must end well."""
    result = mpirun(ranks, *command, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def our_lines(result):
    """Lines that parle_hpc itself wrote on stderr."""
    return [line.partition("parle_hpc: ")[2] for line in result.stderr.splitlines() if "parle_hpc: " in line]


def module(name, *arguments, **options):
    """The finished `python -m name arguments...`, output as text."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, **options)
