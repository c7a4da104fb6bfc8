"""Regenerate a table or a figure of the paper: list its runs and their cost, start what is missing, report.

    python -m parle_hpc.reproduce table1 --size laptop              # hours on two cores; says how many before it starts
    python -m parle_hpc.reproduce table1 --size laptop --dry-run    # print the commands and start nothing
    python -m parle_hpc.reproduce table2 --size paper --sbatch      # write batch scripts for a cluster

EXPERIMENT is table1, table2, fig1 to fig6, replicas (n = 1, 2, 3, 6, 8) or sensitivity (gamma_0 and rho_0). Runs lie in
RUNS/SIZE/NAME and are shared between experiments; one that is finished is not run again, so the same command goes on
after an interruption, from the last checkpoint, and, where batch jobs made the runs, only reports. Do not start it
while such jobs are at work. Runs whose data set is not prepared are left out, and named.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from . import config
from .experiments import EXPERIMENTS, SIZES, folder
from .failure import BAD_INPUT, BadInput, Parser, leave, say
from .records import Record, kind_of
from .report import open_folder, write, write_analysis

ROOT = Path(__file__).resolve().parent.parent
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
    """srun inside a Slurm allocation, else mpirun."""
    if "SLURM_JOB_ID" in environment:
        return ["srun", "--mpi=pmix", "--kill-on-bad-exit=1", "-n", str(ranks)]
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise BadInput("mpirun is not in PATH; load the MPI module, or activate the environment that has it")
    return [found, "-np", str(ranks)]


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
    wanted = config.load([*spec.arguments, "--data.path", str(data_file(spec, data)), "--run.seed", str(spec.seed)])
    if kind_of(Record(path).settings) != kind_of(wanted):
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
        print(f"[{i + 1}/{len(specs)}] {spec.name}", flush=True)
        result = subprocess.run(start(spec, runs, data), env=local_environment(), stdin=subprocess.DEVNULL)
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


def report(name, specs, runs, out):
    """The page of an experiment whose runs are there; its path."""
    title, folders = EXPERIMENTS[name][0], [folder(runs, spec) for spec in specs]
    if name != "fig1":
        return write(folders, out, title)
    from .analysis import study, study_of_replicas

    kept = [path for path, spec in zip(folders, specs, strict=True) if spec.suffix]
    groups = {"independent": study([path for path in folders if path not in kept]).results()}
    for path in kept:
        groups["replicas of Parle"] = study_of_replicas(path).results()
    return write_analysis(groups, out)


def main():
    parser = Parser(
        prog="python -m parle_hpc.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=list(EXPERIMENTS), metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--size", choices=SIZES, default="laptop", help="the paper's, or one for two cores (default)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the runs whose name contains this")
    parser.add_argument("--rounds", type=int, help="rounds of 25 mini-batches of each run, in place of the size's own")
    parser.add_argument("--data", default="data", help="folder of the prepared data sets (default data)")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default runs)")
    parser.add_argument("--out", help="folder of the report (default reports/EXPERIMENT-SIZE)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    what.add_argument("--sbatch", action="store_true", help="write batch scripts into OUT/sbatch and start nothing")
    try:
        given = parser.parse_args()
        for key, most in (("seeds", 1000), ("rounds", 1_000_000)):
            if getattr(given, key) is not None and not 1 <= getattr(given, key) <= most:
                raise BadInput(f"--{key} {getattr(given, key)}: must be 1 to {most:,}")
        out = given.out or f"reports/{given.experiment}-{given.size}"
        specs = EXPERIMENTS[given.experiment][1](given.seeds, given.size, given.rounds)
        specs = [spec for spec in specs if given.only in spec.name]
        if not specs:
            raise BadInput(f"--only {given.only}: no run of {given.experiment} has that in its name; see --dry-run")
        if given.dry_run:
            for spec in specs:
                print(shlex.join(start(spec, given.runs, given.data)))
            return
        if given.sbatch:
            scripts = write_scripts(specs, given.runs, given.data, out)
            print(f"written {scripts}; when these jobs have ended, the same command without --sbatch reports")
            return
        specs = available(specs, given.data)
        open_folder(out)  # hours before the report needs it
        list_runs(specs, given.runs, given.data)
        run(specs, given.runs, given.data)
        print(f"written {report(given.experiment, specs, given.runs, out)}")
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        leave("interrupted; the same command goes on with the run that it was at", 130)


if __name__ == "__main__":
    main()
