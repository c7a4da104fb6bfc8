"""The runs of an experiment: their commands, batch scripts and state; what is missing is started."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from ..errors import BadInput, say
from ..settings import load
from .experiments import EXPERIMENTS, folder
from .pages import open_folder, write, write_analysis
from .records import Record, kind_of

ROOT = Path(__file__).resolve().parents[2]
SBATCH = """#!/usr/bin/env bash
# {group}: a run for each seed. slurm/*.sbatch say what the lines are for, slurm/site.sh holds what is the site's.

##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --job-name={group}
#SBATCH --array={seeds}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --gpus-per-node={tasks}
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
set -euo pipefail

PARLE_HPC_ROOT=${{PARLE_HPC_ROOT:-{root}}}
PARLE_HPC_DATA=${{PARLE_HPC_DATA:-{data}}}
source "$PARLE_HPC_ROOT/slurm/common.sh"

# the array's index is the seed
train {recipe} {dataset} {settings} --out {folder}-seed"$SLURM_ARRAY_TASK_ID"
"""


def command(spec, data):
    """`-m parle_hpc.train ...` of a run, but for its seed and its folder."""
    return ["-m", "parle_hpc.train", *spec.arguments, "--data.path", str(data_file(spec, data))]


def start(spec, runs, data):
    """The whole command that makes a run here."""
    mine = ["--run.seed", str(spec.seed), "--out", str(folder(runs, spec))]
    return [*launcher(spec.ranks, os.environ), sys.executable, *command(spec, data), *mine]


def data_file(spec, data):
    return Path(data) / f"{spec.settings.data.name}.h5"


def launcher(ranks, environment):
    """srun inside a Slurm allocation, else mpirun; be it there or not."""
    if "SLURM_JOB_ID" in environment:
        # a shell that is a step itself has all of the allocation's cores, for which another step would wait for ever
        shared = ["--overlap"] * ("SLURM_STEP_NUM_TASKS" in environment)
        return ["srun", "--mpi=pmix", "--export=ALL", "--kill-on-bad-exit=1", *shared, "-n", str(ranks)]
    beside = Path(sys.executable).with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "-np", str(ranks)]


def local_environment():
    """For mpirun on one machine, which has fewer cores than ranks, and in a container, where all is root's."""
    usual = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
    if os.geteuid() == 0:
        usual.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return {**usual, **os.environ}


def state(spec, path, data):
    """finished, to do, or interrupted. Raises BadInput where the folder holds another run."""
    if not os.path.exists(path / "metrics.jsonl"):
        return "to do"
    if not os.path.exists(path / "reference.pt"):
        return "interrupted"
    wanted = load([*spec.arguments, "--data.path", str(data_file(spec, data)), "--run.seed", str(spec.seed)])
    found = Record(path).settings
    if wanted.run.precision == "auto":
        # what it came to on the machine of the run
        wanted.run.precision = found.run.precision
    if kind_of(found) != kind_of(wanted):
        raise BadInput(f"{path} holds a run with other settings than {spec.name} has; give another --runs folder")
    return "finished"


def write_scripts(specs, runs, data, out):
    """A batch script for each group of runs, an array over its seeds; their folder.

    Raises BadInput where the package is not that of a clone, whose slurm/ the scripts need.
    """
    if not (ROOT / "slurm" / "common.sh").exists():
        raise BadInput(f"--sbatch: no slurm/common.sh in {ROOT}; start it from a clone, installed by pip install -e .")
    scripts = open_folder(Path(out) / "sbatch")
    for group in dict.fromkeys(spec.group for spec in specs):
        mine = [spec for spec in specs if spec.group == group]
        spec, target = mine[0], folder(runs, mine[0])
        nodes = 1 if spec.ranks <= 4 else 2
        _, recipe, *settings = spec.arguments
        text = SBATCH.format(
            group=group,
            seeds=",".join(str(spec.seed) for spec in mine),
            nodes=nodes,
            tasks=spec.ranks // nodes,
            root=shlex.quote(str(ROOT)),
            data=shlex.quote(str(data)),
            recipe=recipe,
            dataset=spec.settings.data.name,
            settings=shlex.join(settings),
            folder=shlex.quote(str(target.with_name(group))),
        )
        (scripts / f"{group}.sbatch").write_text(text)
    return scripts


def run(specs, runs, data):
    """Start, one after the other, the runs that are not finished. Raises BadInput where one does not end well."""
    for i, spec in enumerate(specs):
        if state(spec, folder(runs, spec), data) == "finished":
            continue
        started = start(spec, runs, data)
        if shutil.which(started[0]) is None:
            raise BadInput(f"{started[0]} is not on PATH; load the MPI module, or activate the environment that has it")
        print(f"[{i + 1}/{len(specs)}] {spec.name}", flush=True)
        result = subprocess.run(started, env=local_environment(), stdin=subprocess.DEVNULL)
        if result.returncode:
            raise BadInput(f"{spec.name} ended with status {result.returncode}; mend that, and start the same command")


def available(specs, data):
    """The runs whose data set is prepared; a line for each data set that is not. Raises BadInput where none is."""
    missing = dict.fromkeys(data_file(spec, data) for spec in specs if not os.path.isfile(data_file(spec, data)))
    left = [spec for spec in specs if data_file(spec, data) not in missing]
    if not left:
        names = ", ".join(path.name for path in missing)
        raise BadInput(
            f"--data {data}: no data set of this experiment is there, of {names}; prepare one with "
            "python -m parle_hpc.data.prepare, or give the folder that has it"
        )
    for path in missing:
        say(f"left out: what needs {path}; make it with python -m parle_hpc.data.prepare {path.stem} --out {path}")
    return left


def list_runs(specs, runs, data):
    """A table of the runs, their cost and their state, on stdout."""
    rows = []
    for spec in specs:
        batches, time = spec.cost
        found = state(spec, folder(runs, spec), data)
        rows.append([spec.name, spec.ranks, f"{spec.steps:,}", f"{batches:,}", time, found])
    todo = [spec for spec, row in zip(specs, rows, strict=True) if row[-1] != "finished"]
    headers = ["run", "ranks", "mini-batches a replica", "of all replicas", "time", "state"]
    print(tabulate(rows, headers, disable_numparse=True))
    print(
        f"{len(todo)} of {len(specs)} runs to do, {sum(spec.cost[0] for spec in todo):,} mini-batches of all replicas"
    )


def report(name, specs, runs, data, out):
    """The page of an experiment whose runs are there; its path."""
    title, folders = EXPERIMENTS[name][0], [folder(runs, spec) for spec in specs]
    if name != "fig1":
        return write(folders, out, title)
    from .study import study, study_of_replicas

    file = data_file(specs[0], data)
    kept = [path for path, spec in zip(folders, specs, strict=True) if spec.suffix]
    groups = {"independent": study([path for path in folders if path not in kept], file).results()}
    for path in kept:
        groups["replicas of Parle"] = study_of_replicas(path, file).results()
    return write_analysis(groups, out)
