"""Variables of the environment that do not fit what is running: pure functions that return a line for each.

The program goes by what is right, and not by them; they are named because other programs may believe them.
"""

import socket

from ..placement import STRANGERS, VARIABLES, claim, claims
from ..slurm_job import ARRAY
from ..start import THREADS

GLOO = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS")
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
BINDING = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def find(environment, here, threads, job, can_be_written):
    """Lines.

    Args:
        environment: a mapping, as it was when the program started.
        here: Placement that is believed.
        threads: a rank's share of its node's cores.
        job: name of the Slurm job as Slurm confirms it, slurm_job.name_of_job, or None.
        can_be_written: whether a folder, by its name, can be.
    """
    return [
        *of_launchers(environment, here),
        *of_arrays(environment, job),
        *of_threads(environment, threads),
        *of_horovod(environment),
        *of_folders(environment, can_be_written),
    ]


def of_launchers(environment, here):
    """What another start than this one has said of ranks, but for a step of Slurm's in which an mpirun may well be."""
    around = claim(environment, "Slurm")
    lines = []
    for told in claims(environment):
        fits = [here[:2]]
        if around is not None and told.launcher in ("Slurm", "PMI"):
            fits.append(around[:2])
        if told.launcher != here.launcher and told[:2] not in fits:
            names = VARIABLES[told.launcher][:2]
            whose = told.launcher if told.launcher in STRANGERS else f"another start, by {told.launcher}"
            said = " and ".join(f"{name}={value}" for name, value in zip(names, told, strict=False))
            lines.append(f"{said} are of {whose}, and not of the {here.size} that run; unset {' '.join(names)}")
    return lines


def of_arrays(environment, job):
    pair = "_".join(environment.get(name, "") for name in ARRAY)
    names = [name for name in environment if name.startswith("SLURM_ARRAY_")]
    if not names or (job is not None and job.partition(".")[0] == pair):
        return []
    return [f"{names[0]}={environment[names[0]]} is of an array, of which this is no job; unset {' '.join(names)}"]


def of_threads(environment, threads):
    lines = []
    for name in NUMBERS:
        value = environment.get(name)
        if value is not None and not THREADS.fullmatch(value):
            lines.append(f"{name}={value!r} is no number of threads, and is left out of account; unset {name}")
        elif value is not None and int(value.split(",")[0]) > threads:
            lines.append(f"{name}={value} is more than the {threads} of its node's cores that a rank has; unset {name}")
    return lines


def of_horovod(environment):
    names = [name for name in GLOO if environment.get(name, "").lower() == "gloo"]
    return [f"{name}=gloo: Horovod is started on MPI here, which gloo is not; unset {name}" for name in names]


def of_folders(environment, can_be_written):
    folder = environment.get("TMPDIR")
    if folder is None or can_be_written(folder):
        return []
    host = socket.gethostname()
    return [f"TMPDIR={folder}: no folder that can be written on {host}; unset TMPDIR, or give one that every node has"]


def binding(environment):
    """Names of the variables by which OpenMP binds threads to cores."""
    return [name for name in BINDING if environment.get(name, "false").lower() not in ("", "false", "disabled", "none")]
